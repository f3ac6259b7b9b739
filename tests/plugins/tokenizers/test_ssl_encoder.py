"""The self-supervised tokenizer: masking, targets, objectives, windows, tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from segue.core.assembly import assemble
from segue.core.checkpoint import build_part, load_component, load_state, save_component
from segue.core.checkpoint_files import read_manifest
from segue.core.config import PipelineConfig
from segue.core.config_files import load_config
from segue.core.errors import AssemblyError, CheckpointError
from segue.core.interfaces import WaveBatch
from segue.core.plugins import default_host
from segue.plugins.domains import speech
from segue.plugins.layers.lengths import length_mask
from segue.plugins.tokenizers.common.spectra import in_windows
from segue.plugins.tokenizers.ssl_encoder.config import SslEncoderOptions
from segue.plugins.tokenizers.ssl_encoder.encoder import (
    Masked,
    add_noise,
    disturb,
    draw_spans,
    hide,
    warp,
    warped_bands,
)
from segue.plugins.tokenizers.ssl_encoder.model import SslEncoderTokenizer
from segue.plugins.tokenizers.ssl_encoder.objectives import (
    CODE_DECAY,
    GumbelQuantizer,
    Hubert,
    Spidr,
)
from segue.plugins.tokenizers.ssl_encoder.targets import (
    OnlineClusters,
    RandomQuantizer,
    SlowCopy,
    Swap,
    perplexity,
    share_out,
)
from segue.testing import Check, Subject, parametrize_with_checks, ragged_audio
from segue.training.adaptation import start_from
from segue.training.workspace import Workspace, train_part

TINY: dict[str, Any] = {
    "width": 16, "depth": 3, "heads": 2, "layer": 2, "kernel": 5, "num_clusters": 16,
    "contrastive_depth": 1, "target_codes": 12, "code_width": 8, "num_mels": 20,
}  # fmt: skip
PLAIN = {"warp": 0.0, "seen_weight": 0.0}
SWAP: dict[str, Any] = {"objective": "swap", "depth": 2}
SPIDR: dict[str, Any] = {"objective": "spidr", "num_codebooks": 2}
CHROMA: dict[str, Any] = {
    "objective": "chroma", "bands": "note", "normalise": "row", "window": 2048, "num_mels": 48,
    "lowest_note": 36, "warp": 0.0, "transpose": 3,
}  # fmt: skip
OBJECTIVES: list[dict[str, Any]] = [
    {"objective": "w2v_bert"}, {"objective": "best_rq"}, {"objective": "hubert"}, SWAP, SPIDR,
    CHROMA,
]  # fmt: skip
LENGTHS = [32_000, 6_001, 70]


def build(seed: int = 0, **options: Any) -> SslEncoderTokenizer:
    torch.manual_seed(seed)
    return SslEncoderTokenizer(SslEncoderOptions(**(TINY | options)))


def recordings() -> WaveBatch:
    return ragged_audio(LENGTHS, 16_000)


HUBERT = {"objective": "hubert", "refine_at": 1, "window_seconds": 1, "margin_seconds": 0.2}


@parametrize_with_checks([Subject("semantic_tokenizer", "ssl_encoder.v1", TINY | HUBERT)])
def test_conformance(subject: Subject, check: Check) -> None:
    check(subject)


@pytest.mark.slow
@parametrize_with_checks(
    [
        Subject("semantic_tokenizer", "ssl_encoder.v1", TINY | {"objective": "w2v_bert"}),
        Subject(
            "semantic_tokenizer",
            "ssl_encoder.v1",
            TINY | {"objective": "best_rq", "subframes": 2, "frame_rate": 50},
            label="best_rq-50",
        ),
        Subject(
            "semantic_tokenizer",
            "ssl_encoder.v1",
            TINY | SWAP | {"noise": 0.5, "equalise": 0.5},
            label="swap",
        ),
        Subject("semantic_tokenizer", "ssl_encoder.v1", TINY | SPIDR, label="spidr"),
        Subject("semantic_tokenizer", "ssl_encoder.v1", TINY | CHROMA, label="chroma"),
    ]
)
def test_conformance_of_other_objectives(subject: Subject, check: Check) -> None:
    check(subject)


# --- learning ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param(PLAIN, marks=pytest.mark.slow),
        {"warp": 0.1, "seen_weight": 0.5, "mask_fill": "zero"},
    ],
)
@pytest.mark.parametrize("options", OBJECTIVES, ids=lambda given: given["objective"])
def test_every_objective_can_be_learnt(options: dict[str, Any], extra: dict[str, Any]) -> None:
    model = build(**(extra | options), dropout=0.0).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batch = ragged_audio([16_000, 10_000], 16_000)
    losses, figures = [], {}
    for _ in range(40):
        torch.manual_seed(0)  # the same spans and noise each time: they can be learnt by heart
        figures = model.training_step(batch)
        optimizer.zero_grad()
        figures["loss"].backward()
        optimizer.step()
        losses.append(float(figures["loss"].detach()))
        if losses[-1] < 0.6 * losses[0]:
            break
    assert losses[-1] < 0.6 * losses[0]
    assert 0 <= figures["accuracy"] <= 1 and 1 <= figures["perplexity"] <= 12
    assert ("seen" in figures) == (extra is not PLAIN)
    unreached = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
    later = {name for name in unreached if name.startswith("objective.refined_prediction.")}
    assert unreached - later <= {"encoder.conformer.norm.weight"}


@pytest.mark.parametrize("options", OBJECTIVES, ids=lambda given: given["objective"])
def test_steps_repeat_under_a_seed_and_validation_learns_nothing(options: dict[str, Any]) -> None:
    losses = []
    for _ in range(2):
        model = build(**options).train()
        torch.manual_seed(5)
        losses.append(model.training_step(recordings())["loss"])
    assert torch.equal(*losses)
    model.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    first, second = (model.training_step(recordings()) for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("options", OBJECTIVES, ids=lambda given: given["objective"])
def test_what_lies_beyond_a_row_is_not_learnt_from(options: dict[str, Any]) -> None:
    batch = recordings()
    beyond = ~length_mask(batch.lengths, batch.wave.shape[1])
    noisy = WaveBatch(batch.wave + beyond * torch.rand_like(batch.wave), batch.lengths)
    model = build(**options).eval()
    quiet, loud = (model.training_step(b)["loss"] for b in (batch, noisy))
    assert torch.equal(quiet, loud)


def test_training_forgets_the_clusters() -> None:
    model = build().eval()
    model.fit([recordings()])
    assert model.is_fitted
    model.training_step(recordings())
    assert model.is_fitted  # in eval mode: a validation
    model.train().training_step(recordings())
    assert not model.is_fitted
    with pytest.raises(CheckpointError, match="fitted"):
        model.encode(torch.zeros(1, 640), torch.tensor([640]))


def test_hidden_frames_are_out_of_sight() -> None:
    """What is in a hidden span has no influence on the activations."""
    config = SslEncoderOptions(**TINY, mask_fill="zero")
    mel, other = torch.randn(2, 1, 80, 20)
    hidden = torch.zeros(1, 20, dtype=torch.bool)
    hidden[:, 5:12] = True
    mixed = torch.where(hidden.repeat_interleave(4, 1)[..., None], other, mel)
    seen = [hide(x, hidden, config, None) for x in (mel, mixed)]
    assert torch.equal(*seen)


# --- masking ----------------------------------------------------------------------------------


def test_spans_cover_their_share() -> None:
    config = SslEncoderOptions(**TINY, mask_share=0.4, mask_seconds=0.4)
    valid = length_mask(torch.tensor([2000, 1500, 3, 1]), 2000)
    hidden = draw_spans(valid, config, torch.Generator().manual_seed(0))
    assert not (hidden & ~valid).any()
    assert hidden.any(1).all()
    shares = hidden.sum(1) / valid.sum(1)
    assert 0.34 < shares[0] < 0.46 and 0.34 < shares[1] < 0.46
    starts = hidden[0] & ~hidden[0].roll(1)
    assert int(starts.sum()) * config.span <= int(hidden[0].sum()) + config.span


def test_warping_moves_a_tone_to_its_new_band() -> None:
    config = SslEncoderOptions(warp=0.2)
    places = warped_bands(torch.tensor([1.0, 1.2, 1 / 1.2]), 80, 20.0, 8000.0)
    assert torch.allclose(places[0], torch.arange(80.0), atol=1e-3)
    # Band 40 is about 1.9 kHz; what stands there was, before the stretch, higher or lower.
    assert places[1, 40] > 43 and places[2, 40] < 37
    assert places.min() >= 0 and places.max() <= 79
    tone = torch.exp(-0.5 * (torch.arange(80.0) - 40) ** 2)
    warped = warp(tone.expand(3, 7, 80), config, torch.Generator().manual_seed(0))
    peaks = warped[:, 0].argmax(1)
    assert len(set(peaks.tolist())) > 1 and (peaks - 40).abs().max() <= 8
    assert torch.allclose(warped[:, 0].amax(1), torch.ones(3), atol=0.2)
    plain = warp(tone.expand(3, 7, 80), SslEncoderOptions(warp=0.0), None)
    assert torch.allclose(plain, tone.expand(3, 7, 80), atol=1e-3)


def test_noise_covers_what_is_quiet_in_its_share_of_rows() -> None:
    mel = torch.full((400, 6, 20), -11.0)
    mel[:, :, 5] = 0.0  # a loud band
    found = add_noise(mel, 0.25, torch.Generator().manual_seed(0))
    changed = (found != mel).flatten(1).any(1)
    assert 0.18 < changed.float().mean() < 0.32
    noisy = found[changed]
    assert (noisy >= mel[changed]).all()
    assert (noisy[:, :, 5].abs() < 0.3).float().mean() > 0.9  # stands out of nearly any noise
    floor = noisy[:, :, 10]
    assert -9.5 < floor.mean(1).min() < -8 and -5 < floor.mean(1).max() < -3
    assert floor.std(1).mean() < 0.5  # stationary


def test_disturbing_leaves_an_undisturbed_row_alone() -> None:
    mel = torch.randn(3, 12, 20)
    plain = {"warp": 0.0, "noise": 0.0, "equalise": 0.0}
    assert torch.equal(disturb(mel, SslEncoderOptions(**(TINY | plain)), None), mel)
    gained = disturb(mel, SslEncoderOptions(**(TINY | plain | {"equalise": 0.5})), None) - mel
    torch.testing.assert_close(gained, gained[:, :1].expand_as(gained))  # the same all along
    assert gained.std() > 0.2 and gained[:, 0].diff(dim=1).abs().max() < 1.0


# --- targets ----------------------------------------------------------------------------------


def test_prototypes_are_share_out() -> None:
    """Though all frames are closest to the same few."""
    torch.manual_seed(0)
    cosines = 0.15 * torch.randn(600, 12)
    cosines[:, :2] += 0.4
    assert torch.bincount(cosines.argmax(1), minlength=12)[2:].sum() < 100
    shares = share_out(cosines)
    torch.testing.assert_close(shares.sum(1), torch.ones(600))
    assert (shares.sum(0) - 50).abs().max() < 10
    # Who goes to a prototype is who is closest to it among those that could.
    most = shares[:, 5].topk(20).indices
    assert cosines[most, 5].mean() > cosines[:, 5].mean() + 0.15


@pytest.mark.parametrize("options", [SWAP, SPIDR], ids=lambda given: given["objective"])
def test_the_slow_copy_follows(options: dict[str, Any]) -> None:
    model = build(**options, copy_decay=0.75).train()
    objective = model.objective
    assert isinstance(objective, SlowCopy)
    with torch.no_grad():
        model.encoder.subsampling.out.weight.add_(0.1)
    first = model.encoder.subsampling.out.weight.clone()
    model.training_step(recordings())
    torch.testing.assert_close(objective.encoder_copy.subsampling.out.weight, first)
    with torch.no_grad():
        model.encoder.subsampling.out.weight.add_(0.4)
    model.training_step(recordings())
    torch.testing.assert_close(objective.encoder_copy.subsampling.out.weight, first + 0.1)
    fresh = build(**options, copy_decay=0.75, fresh_copy=True).train()
    assert isinstance(fresh.objective, SlowCopy)
    before = fresh.objective.encoder_copy.subsampling.out.weight.clone()
    with torch.no_grad():
        fresh.encoder.subsampling.out.weight.add_(0.4)
    fresh.training_step(recordings())
    torch.testing.assert_close(fresh.objective.encoder_copy.subsampling.out.weight, before + 0.1)
    copies = [(key, p) for key, p in objective.named_parameters() if "_copy." in key]
    assert copies and not any(p.requires_grad for _, p in copies)


@pytest.mark.parametrize("options", OBJECTIVES, ids=lambda given: given["objective"])
def test_what_only_training_needs_may_be_left_out(options: dict[str, Any], tmp_path: Path) -> None:
    first, second = build(**options), build(seed=1, **options)
    first.fit([recordings()])
    save_component(first, tmp_path, "semantic_tokenizer", "x.v1", {}, state=first.token_state())
    load_state(second, tmp_path, "x.v1")
    wave = recordings().wave[:1], torch.tensor([32_000])
    assert torch.equal(first.eval().encode(*wave).ids, second.eval().encode(*wave).ids)
    second.train().training_step(recordings())
    needed = {k: v for k, v in first.token_state().items() if k != "centroids"}
    save_component(first, tmp_path, "semantic_tokenizer", "x.v1", {}, state=needed)
    with pytest.raises(CheckpointError, match="centroids"):
        load_state(second, tmp_path, "x.v1")


def test_swapping_begins_where_another_objective_ended(tmp_path: Path) -> None:
    """Though the copies of the encoder are in no checkpoint of tokens."""
    first = build(depth=3, layer=2)
    for _ in range(2):
        first.train().training_step(recordings())
    first.eval().fit([recordings()])
    first.seal("x.v1")
    save_component(first, tmp_path, "semantic_tokenizer", "x.v1", {})
    second = build(seed=1, **SWAP)
    left = start_from(second, tmp_path, "semantic_tokenizer.training.start_from")
    assert "objective.head.prototypes" in left and "encoder.subsampling.out.weight" not in left
    second.train().training_step(recordings())
    assert isinstance(second.objective, Swap)
    block = "conformer.blocks.1.attention.out.weight"
    taken = first.state_dict()[f"encoder.{block}"]
    assert torch.equal(second.objective.encoder_copy.state_dict()[block], taken)


def test_targets_of_swapping_are_of_single_precision() -> None:
    """Though spectra are, and activations are not, as under autocast on a GPU."""
    model = build(**SWAP).train()
    assert isinstance(model.objective, Swap)
    mel, valid = torch.randn(2, 80, 20), torch.ones(2, 20, dtype=torch.bool)
    hidden = torch.zeros_like(valid)
    hidden[:, 4:9] = True
    with torch.autocast("cpu", torch.bfloat16):
        states = model.encoder(mel, valid, 2)
        batch = Masked(mel, valid, hidden, states)
        assert model.objective.head(states[-1][valid]).dtype == torch.bfloat16
        shares = model.objective._targets(batch)
        loss = model.objective(batch, model.encoder)["loss"]
    assert shares.dtype == torch.float32
    torch.testing.assert_close(shares.sum(1), torch.ones(40))
    loss.backward()
    assert model.objective.head.prototypes.grad is not None and loss.isfinite()


def test_a_random_quantizer_is_fixed_and_uses_many_codes() -> None:
    config = SslEncoderOptions(**(TINY | {"objective": "best_rq", "num_codebooks": 2}))
    quantizer = RandomQuantizer(config)
    mel = torch.randn(2, 200, 20)
    ids = quantizer(mel, torch.ones(2, 50, dtype=torch.bool))
    assert ids.shape == (2, 50, 2) and not list(quantizer.parameters())
    assert perplexity(ids.flatten(0, 1), 12) > 6
    assert torch.equal(quantizer(3.0 * mel, torch.ones(2, 50, dtype=torch.bool)), ids)


def test_online_clusters_find_what_is_there() -> None:
    torch.manual_seed(1)
    centres = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0], [5.0, 5.0]])
    clusters = OnlineClusters(2, 8).train()
    labels = torch.randint(4, (10, 3, 40))
    for batch in labels:
        x = centres[batch] + 0.1 * torch.randn(3, 40, 2)
        clusters(x, torch.ones(3, 40, dtype=torch.bool))
    clusters.eval()
    before = clusters.centroids.clone()
    ids = clusters(centres[None], torch.ones(1, 4, dtype=torch.bool))[0, :, 0]
    assert len(set(ids.tolist())) == 4
    assert torch.equal(before, clusters.centroids)


def spidr_batch(model: SslEncoderTokenizer, seed: int = 0) -> Masked:
    """Return a batch of rows of 20 and 13 frames, of which the encoder does not see some."""
    torch.manual_seed(seed)
    mel, valid = torch.randn(2, 80, 20), length_mask(torch.tensor([20, 13]), 20)
    hidden = torch.zeros_like(valid)
    hidden[0, 4:9] = hidden[1, 10:13] = True
    return Masked(mel, valid, hidden, model.encoder(mel, valid, 3))


def nearest(points: Tensor, codes: Tensor) -> Tensor:
    """Return the nearest code of each point, found one by one."""
    return torch.tensor([int((codes - point).square().sum(1).argmin()) for point in points])


def test_each_layer_predicts_the_codes_of_its_own_layer_of_the_copy() -> None:
    """Loss and accuracy are those of hidden frames, computed row by row."""
    model = build(**SPIDR, **PLAIN, fresh_copy=True, copy_decay=0.5, dropout=0.0).train()
    spidr = model.objective
    assert isinstance(spidr, Spidr)
    spidr(spidr_batch(model), model.encoder)  # sets the codes
    model.eval()
    batch = spidr_batch(model, seed=1)
    found = spidr(batch, model.encoder)
    taught = spidr.encoder_copy(batch.mel, batch.valid, 3)
    losses, right = [], []
    for place, layer in enumerate((1, 2)):  # counted from 0, the upper two of three
        clusters, predict = spidr.clusters[place], spidr.predictions[place]
        points = (taught[layer][batch.hidden] - clusters.mean) / clusters.deviation
        ids = nearest(points, clusters.centroids)
        logits = predict.heads(predict.norm(batch.states[layer][batch.hidden]))
        chances = logits.log_softmax(1)
        losses.append(-sum(chances[row, code] for row, code in enumerate(ids)) / len(ids))
        right.append((logits.argmax(1) == ids).float().mean())
    torch.testing.assert_close(found["loss"], torch.stack(losses).mean())
    torch.testing.assert_close(found["accuracy"], torch.stack(right).mean())
    assert len(losses) == 2 and set(found) == {"loss", "masked", "accuracy", "perplexity"}
    loss = spidr(batch, model.encoder)["loss"]
    loss.backward()
    assert all(p.grad is not None for p in spidr.predictions.parameters())
    assert not any(p.requires_grad for p in spidr.encoder_copy.parameters())


def test_only_hidden_frames_count_where_seen_ones_have_no_weight() -> None:
    model = build(**SPIDR, **PLAIN).eval()
    batch = spidr_batch(model)
    first = model.objective(batch, model.encoder)["loss"]
    keep = batch.hidden[..., None]
    changed = [torch.where(keep, x, torch.randn_like(x)) for x in batch.states]
    second = model.objective(replace(batch, states=changed), model.encoder)["loss"]
    assert torch.equal(first, second)
    moved = [torch.where(keep, torch.randn_like(x), x) for x in batch.states]
    third = model.objective(replace(batch, states=moved), model.encoder)["loss"]
    assert not torch.equal(first, third)


def test_codes_move_to_the_decayed_mean_of_what_came_to_them() -> None:
    """Frames of earlier steps weigh ``decay`` times as much as in the step before."""
    clusters = OnlineClusters(2, 3, decay=0.5).train()
    clusters.counts.copy_(torch.tensor([4.0, 2.0, 8.0]))
    clusters.centroids.copy_(torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]]))
    x = torch.tensor([[[1.0, 1.0], [3.0, 1.0], [9.0, 1.0], [0.0, 99.0]]])
    ids = clusters(x, torch.tensor([[True, True, True, False]]))
    # Code 0: (2 * (0, 0) + (1, 1) + (3, 1)) / (2 + 2); code 1: (1 * (10, 0) + (9, 1)) / (1 + 1).
    wanted = torch.tensor([[1.0, 0.5], [9.5, 0.5], [0.0, 10.0]])
    torch.testing.assert_close(clusters.centroids, wanted)
    torch.testing.assert_close(clusters.counts, torch.tensor([4.0, 2.0, 4.0]))
    assert ids[0, :, 0].tolist() == [0, 0, 1, 2]


def test_a_decayed_code_is_the_moving_average_of_the_papers() -> None:
    """DinoSR keeps moving averages of sums and of counts and divides them; so do we, in effect."""
    torch.manual_seed(0)
    clusters = OnlineClusters(4, 5, decay=CODE_DECAY).train()
    clusters(torch.randn(2, 60, 4), torch.ones(2, 60, dtype=torch.bool))
    counts = (1 - CODE_DECAY) * clusters.counts
    sums = counts[:, None] * clusters.centroids
    for step in range(4):
        x = torch.randn(1, 50, 4) + 0.2 * step
        points = ((x - clusters.mean) / clusters.deviation)[0]
        ids = nearest(points, sums / counts[:, None])
        for code in range(5):
            came = points[ids == code]
            sums[code] = CODE_DECAY * sums[code] + (1 - CODE_DECAY) * came.sum(0)
            counts[code] = CODE_DECAY * counts[code] + (1 - CODE_DECAY) * len(came)
        clusters(x, torch.ones(1, 50, dtype=torch.bool))
        torch.testing.assert_close(clusters.centroids, sums / counts[:, None])


@pytest.mark.parametrize("options", [SWAP, SPIDR], ids=lambda given: given["objective"])
def test_training_on_a_slow_copy_goes_on_as_if_never_stopped(options: dict[str, Any]) -> None:
    """All that a step needs of the steps before it is in the state."""

    def step(model: SslEncoderTokenizer) -> Tensor:
        torch.manual_seed(3)
        loss = model.training_step(recordings())["loss"]
        loss.backward()
        with torch.no_grad():
            for p in model.parameters():
                if p.grad is not None:
                    p -= 0.1 * p.grad
        model.zero_grad()
        return loss

    first, second = build(**options).train(), build(seed=1, **options).train()
    for _ in range(2):
        step(first)
    second.load_state_dict(first.state_dict())
    for _ in range(2):
        assert torch.equal(step(first), step(second))
    assert all(torch.equal(x, second.state_dict()[key]) for key, x in first.state_dict().items())


def test_hubert_goes_over_to_its_own_layer() -> None:
    model = build(objective="hubert", refine_at=2).train()
    objective = model.objective
    assert isinstance(objective, Hubert)
    with torch.no_grad():
        model.encoder.subsampling.out.weight.add_(0.1)
    for step in range(4):
        model.training_step(recordings())
        assert bool(objective.refined.counts.any()) == (step >= 2)
    own, copied = (e.state_dict() for e in (model.encoder, objective.teacher))
    assert all(torch.equal(own[key], copied[key]) for key in own)
    assert not any(p.requires_grad for p in objective.teacher.parameters())


def test_a_trained_encoder_can_be_refined_later() -> None:
    first = build(objective="hubert").train()
    for _ in range(2):
        first.training_step(recordings())
    assert isinstance(first.objective, Hubert) and not first.objective.refines
    second = build(seed=7, objective="hubert", refine_at=0).train()
    second.load_state_dict(first.state_dict())
    second.training_step(recordings())
    assert isinstance(second.objective, Hubert) and second.objective.refines
    own, copied = (e.state_dict() for e in (first.encoder, second.objective.teacher))
    assert all(torch.equal(own[key], copied[key]) for key in own)


def test_the_gumbel_temperature_falls() -> None:
    config = SslEncoderOptions(**TINY, gumbel=(2.0, 0.5), gumbel_decay=0.5)
    quantizer = GumbelQuantizer(config).train()
    temperatures = []
    for _ in range(4):
        temperatures.append(quantizer.temperature)
        quantizer(torch.randn(30, 16))
    assert temperatures == [2.0, 1.0, 0.5, 0.5]
    assert int(quantizer.updates) == 4


def test_perplexity_counts_codes_in_use() -> None:
    assert perplexity(torch.tensor([[0], [1], [2], [3]]), 8) == pytest.approx(4)
    assert perplexity(torch.zeros(9, 1, dtype=torch.long), 8) == pytest.approx(1)


# --- tokens -----------------------------------------------------------------------------------


def test_features_are_the_layers_activations() -> None:
    model = build().eval()
    wave = recordings().wave[:1].double()
    lengths = torch.tensor([32_000])
    with torch.no_grad():
        states = model.encoder(model.mel(wave, lengths).float(), torch.ones(1, 50).bool(), 3)
        found = model.features(wave, lengths)
    assert found.shape == (1, 50, 16)
    assert torch.allclose(found.float(), states[1], atol=1e-5)
    assert not torch.allclose(found.float(), states[2], atol=1e-2)


def test_the_former_name_makes_the_same_tokenizer() -> None:
    """A shipped checkpoint stores it, with the fingerprint that stages were trained on."""
    host = default_host()
    former = host.find("semantic_tokenizer", "w2v_bert.v1", "test")
    current = host.find("semantic_tokenizer", "ssl_encoder.v1", "test")
    assert (former.target, former.config) == (current.target, current.config)
    shipped = Path(speech.__file__).parent / "pretrained" / "semantic_tokenizer"
    manifest = read_manifest(shipped)
    assert manifest.use == "w2v_bert.v1" and manifest.token_spec is not None
    opened = load_component(shipped, host, "test")
    assert isinstance(opened, SslEncoderTokenizer)
    assert opened.spec.fingerprint == manifest.token_spec.fingerprint


OLD = Path(__file__).parents[2] / "golden/saved_0.1/run/semantic_tokenizer/step-00000006-fitted"


def opened_as(name: str, *texts: str) -> PipelineConfig:
    """The speech config with a checkpoint that was saved as w2v_bert.v1."""
    chosen = [f"semantic_tokenizer.use={name}", f"semantic_tokenizer.checkpoint={OLD}"]
    return load_config("speech/baseline", default_host(), [*chosen, *texts]).config


def test_either_name_opens_a_checkpoint_and_keeps_its_name() -> None:
    """Names are compared by what they stand for; the fingerprint hashes the checkpoint's name."""
    host = default_host()
    part = assemble(opened_as("ssl_encoder.v1"), host).parts["semantic_tokenizer"]
    assert part.use == "w2v_bert.v1"
    built = build_part(part, host, allow_untrained=False)
    assert isinstance(built, SslEncoderTokenizer)
    assert built.spec == read_manifest(OLD).token_spec
    with pytest.raises(AssemblyError, match=r"set semantic_tokenizer\.use=w2v_bert\.v1"):
        assemble(opened_as("mel_kmeans.v1"), host)


@pytest.mark.slow
def test_training_goes_on_under_the_name_of_the_checkpoint(
    tmp_path: Path, recordings_folder: Path
) -> None:
    steps = "semantic_tokenizer.training={steps: 1, batch_size: 2, crop_seconds: 1}"
    config, host = opened_as("ssl_encoder.v1", steps), default_host()
    for _ in range(2):  # the second time it finds its own checkpoint
        found = train_part(
            Workspace(config, tmp_path, recordings_folder, host), "semantic_tokenizer"
        )
        assert read_manifest(found).use == "w2v_bert.v1"


def test_the_fingerprint_is_of_what_determines_tokens() -> None:
    first = build(seed=0)
    first.fit([recordings()])
    sealed = first.seal("x.v1")

    def changed(key: str) -> bool:
        other = build(seed=0)
        other.load_state_dict(first.state_dict())
        with torch.no_grad():
            other.state_dict()[key].add_(1)
        return other.seal("x.v1") != sealed

    assert not changed("encoder.conformer.blocks.2.attention.out.weight")  # above the layer
    assert not changed("objective.prediction.heads.weight")
    assert changed("encoder.conformer.blocks.1.attention.out.weight")
    assert changed("centroids")
    same = build(seed=0, mask_share=0.3, warp=0.1)
    same.load_state_dict(first.state_dict())
    assert same.seal("x.v1") == sealed
    other = build(seed=0, layer=1)
    other.load_state_dict(first.state_dict())
    assert other.seal("x.v1") != sealed


@pytest.mark.parametrize("total", [10, 11, 64])
def test_windows_cover_every_frame_once(total: int) -> None:
    wave = torch.arange(4.0 * total)
    calls: list[int] = []

    def encode(part: Tensor) -> Tensor:
        calls.append(len(part))
        return part[::4, None]

    found = in_windows(encode, wave, 4, window=10, margin=2)
    assert torch.equal(found[:, 0], wave[::4])
    assert set(calls) == {40}


def test_a_window_sees_its_margins() -> None:
    """Frames are taken from where a window knows both sides, as far as the recording goes."""

    def distance_to_edge(part: Tensor) -> Tensor:
        places = torch.arange(len(part))
        return torch.minimum(places, places.flip(0))[:, None]

    found = in_windows(distance_to_edge, torch.zeros(100), 1, window=20, margin=5)[:, 0]
    assert found[5:95].min() >= 5


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"layr": 1}, "layr"),
        ({"layer": 4}, "layer 4 does not exist"),
        ({"subframes": 3}, "subframes"),
        ({"heads": 3}, "divisible by 6"),
        ({"kernel": 4}, "odd"),
        ({"objective": "w2v_bert", "contrastive_depth": 3}, "leaves no layer"),
        ({"gumbel": (0.5, 2.0)}, "gumbel"),
        ({"objective": "hubert", "num_codebooks": 2}, "one codebook"),
        ({"objective": "best_rq", "refine_at": 5}, "refine_at is for hubert"),
        ({"window_seconds": 3, "margin_seconds": 2}, "two margins"),
        ({"window": 100}, "window"),
        ({"objective": "swap", "layer": 2}, "set depth to 2"),
        ({"objective": "swap", "depth": 2, "num_codebooks": 2}, "swap has one codebook"),
        ({"objective": "spidr", "num_codebooks": 4}, "set num_codebooks to at most 3, not 4"),
        ({"noise": 1.5}, "noise"),
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any], word: str) -> None:
    with pytest.raises(ValidationError, match=word):
        SslEncoderOptions(**(TINY | wrong))


def test_codes_that_no_frame_could_choose_have_a_gradient() -> None:
    """A wide encoder's first scores are so far apart that shares underflow."""
    torch.manual_seed(0)
    config = SslEncoderOptions(objective="w2v_bert", width=1024, heads=4, target_codes=512)
    quantizer = GumbelQuantizer(config).train()
    vectors, _, idle = quantizer(torch.randn(4, 1024))
    (vectors.sum() + idle).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in quantizer.parameters())
