"""The residual quantizer that the codecs share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing

from segue.plugins.tokenizers.common import quantizer as module
from segue.plugins.tokenizers.common.quantizer import Codebook, ResidualQuantizer
from segue.plugins.tokenizers.ssl_encoder.targets import OnlineClusters


def stream(batches: int, seed: int = 0, scale: float = 1.0, rows: int = 4) -> list[torch.Tensor]:
    """Batches ``[rows, 25, 6]`` around 40 points."""
    draw = torch.Generator().manual_seed(seed)
    points = torch.randn(40, 6, generator=torch.Generator().manual_seed(99))
    made = []
    for _ in range(batches):
        chosen = torch.randint(40, (rows, 25), generator=draw)
        made.append(scale * (points[chosen] + 0.1 * torch.randn(rows, 25, 6, generator=draw)))
    return made


def taught(batches: list[torch.Tensor], **options: float) -> ResidualQuantizer:
    torch.manual_seed(0)
    settings = {"decay": 0.9, "revive_below": 0.1, **options}
    quantizer = ResidualQuantizer(3, 32, 6, **settings).train()  # type: ignore[arg-type]
    for batch in batches:
        quantizer(batch, torch.ones(4, 25))
    return quantizer.eval()


@pytest.mark.parametrize("kmeans", [0, 250])
def test_each_level_halves_the_error_and_uses_its_codes(kmeans: int) -> None:
    quantizer = taught(stream(60), kmeans_vectors=kmeans)
    fresh = torch.cat(stream(10, seed=1))
    ids = quantizer.encode(fresh)
    errors = [
        (fresh - quantizer.decode(ids[:, :count])).square().mean().item() for count in (1, 2, 3)
    ]
    # Bounds lie about a third above what is measured.
    assert errors[0] < 0.15 and errors[1] < 0.6 * errors[0] and errors[2] < 0.7 * errors[1]
    for level in ids.unbind(1):
        assert level.unique().numel() >= 28  # of 32
    assert (quantizer.perplexity() > 0.5).all()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_scale_of_the_latents_does_not_matter(scale: float) -> None:
    quantizer, plain = taught(stream(30, scale=scale)), taught(stream(30))
    fresh = torch.cat(stream(5, seed=1))
    errors = []
    for learnt, vectors in ((quantizer, scale * fresh), (plain, fresh)):
        made = learnt.decode(learnt.encode(vectors))
        errors.append(((vectors - made).square().mean() / vectors.square().mean()).item())
    assert errors[0] == pytest.approx(errors[1], rel=0.5)


def test_the_first_batch_places_every_level_on_what_is_left() -> None:
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(3, 200, 6, 0.9, 0.1).train()
    batch = 1e-3 * stream(1)[0]
    quantized = quantizer(batch, torch.ones(4, 25))
    # Random codes of unit size would leave a thousand times the vectors' energy.
    assert quantized.commitment < 1e-7
    assert all(book.seeded for book in quantizer.levels())


def test_levels_are_placed_by_kmeans_one_after_another() -> None:
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(2, 32, 6, 0.9, 0.1, kmeans_vectors=250).train()
    seeded = []
    for batch in stream(7):
        quantized = quantizer(batch, torch.ones(4, 25))
        assert quantized.ids.shape == (4, 2, 25)
        seeded.append([bool(book.seeded) for book in quantizer.levels()])
    first, second = [row[0] for row in seeded], [row[1] for row in seeded]
    assert first == [False] * 2 + [True] * 5
    assert second == [False] * 4 + [True] * 3


def test_padding_teaches_nothing() -> None:
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(2, 8, 6, 0.9, 0.1).train()
    batch, mask = stream(1)[0], torch.ones(4, 25)
    mask[:, 10:] = 0
    batch[:, 10:] = 1e6
    for _ in range(5):
        quantizer(batch, mask)
    assert all(book.codes.abs().max() < 10 for book in quantizer.levels())
    before = {key: value.clone() for key, value in quantizer.state_dict().items()}
    quantizer(batch, torch.zeros(4, 25))
    quantizer(torch.full_like(batch, torch.nan), mask)
    assert all(torch.equal(v, before[key]) for key, v in quantizer.state_dict().items())


def test_a_code_that_nobody_uses_is_moved() -> None:
    torch.manual_seed(0)
    book = Codebook(4, 2, decay=0.8, revive_below=0.1)
    book.seeded.fill_(True)
    book.codes.copy_(torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [50.0, 50.0]]))
    book.sums.copy_(book.codes)
    vectors = torch.rand(64, 2)
    for _ in range(30):
        book.learn(vectors, book.nearest(vectors), torch.tensor([64]))
    assert book.codes.max() < 2
    assert book.nearest(vectors).unique().numel() == 4


def test_dropped_levels_leave_the_first_ones() -> None:
    quantizer = taught(stream(20))
    quantizer.train().dropout = 1.0
    batch = torch.cat(stream(8, seed=1))
    torch.manual_seed(0)
    ids = quantizer.encode(batch)
    latents = quantizer(batch, torch.ones(batch.shape[:2])).latents
    sums = [quantizer.decode(ids[:, :count]) for count in (1, 2, 3)]
    # Codes moved a little in between; which of the sums is meant shows all the same.
    gaps = torch.stack([(latents - total).square().mean(dim=(1, 2)) for total in sums])
    assert gaps.argmin(dim=0).unique().tolist() == [0, 1, 2]
    assert (gaps.amin(dim=0) < 0.01).all()


def test_the_nearest_are_found_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    book, vectors = Codebook(16384, 8, 0.9, 0.1), torch.randn(100, 8)
    wanted = torch.cdist(vectors, book.codes).argmin(dim=1)
    monkeypatch.setattr(module, "LARGEST_DISTANCES", 16384 * 7)
    assert torch.equal(book.nearest(vectors), wanted)


def test_gradients_pass_straight_through() -> None:
    quantizer = taught(stream(5))
    batch = stream(1, seed=1)[0].requires_grad_()
    quantizer(batch, torch.ones(4, 25)).latents.sum().backward()
    assert batch.grad is not None and torch.equal(batch.grad, torch.ones_like(batch))


# --- several ranks ----------------------------------------------------------------------------


def learn_on_a_rank(rank: int, world: int, folder: str) -> None:
    """Learn from this rank's rows of ragged batches; codes die now and then."""
    torch.set_num_threads(1)  # in a forked process others would wait for ever
    if world > 1:
        dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=world)
    for kmeans in (0, 250):
        options = {"revive_below": 0.5, "dropout": 0.5, "bypass": 0.2, "kmeans_vectors": kmeans}
        torch.manual_seed(0)
        quantizer = ResidualQuantizer(2, 32, 6, 0.9, **options).train()  # type: ignore[arg-type]
        clusters = OnlineClusters(6, 32).train()
        latents, used = [], []
        for index, batch in enumerate(stream(9, rows=6)):
            torch.manual_seed(1000 * index + rank)
            lengths = torch.tensor([25, 3, 0, 25, 11, 20]) if index % 5 else torch.full((6,), 25)
            mask = (torch.arange(25) < lengths[:, None]).float()
            if index == 8:
                mask[1::2] = 0  # a rank whose crops are all padding must not stop the others
            if index == 6:
                batch[1] *= torch.nan
            own = slice(rank, None, world)
            latents.append(quantizer(batch[own], mask[own]).latents)
            used.append(quantizer.use(quantizer.encode(batch[own]), mask[own])["codebook_use"])
            clusters(batch[own].nan_to_num(), mask[own] > 0)
        state = quantizer.state_dict() | clusters.state_dict() | {"used": torch.stack(used)}
        torch.save((state, latents), f"{folder}/{world}-{rank}-{kmeans}.pt")
    # The process ends without leaving the group: that may wait for ever where the other has left.


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_ranks_learn_the_codes_that_one_process_does(tmp_path: Path, ranks: int) -> None:
    """Whether placed on vectors or by k-means, and moved when nobody uses them."""
    for world in (1, ranks):
        (tmp_path / f"{world}").mkdir()
        run = multiprocessing.start_processes(
            learn_on_a_rank, (world, str(tmp_path / f"{world}")), world, start_method="fork"
        )
        assert run is None
    for kmeans in (0, 250):
        codes, latents = torch.load(tmp_path / f"1/1-0-{kmeans}.pt")
        for rank in range(ranks):
            others, theirs = torch.load(tmp_path / f"{ranks}/{ranks}-{rank}-{kmeans}.pt")
            for key, value in codes.items():
                torch.testing.assert_close(others[key], value, atol=1e-4, rtol=1e-4)
            for ours, own in zip(latents, theirs, strict=True):
                expected = ours[rank::ranks]
                torch.testing.assert_close(own, expected, atol=1e-4, rtol=1e-4, equal_nan=True)
