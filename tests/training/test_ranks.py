"""Ranks that train together learn what one process would have learnt."""

from __future__ import annotations

import json
import random
import re
import signal
import socket
import time
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.adversarial_helpers import Critic
from tests.data_helpers import clocks, stage, timed
from tests.forks import Fork
from tests.training.test_counts import CountOptions, Counts
from torch import Tensor, nn
from torch._dynamo.utils import counters

from segue.apps.cli.output import clear_errors
from segue.core.checkpoint_files import newest_checkpoint
from segue.core.collectives import summed
from segue.core.config import TrainingConfig
from segue.core.errors import DataError, TrainingError
from segue.core.hookspecs import hookimpl
from segue.core.interfaces import Adversary, Component, StageBatch, Tokens, WaveBatch
from segue.core.options import Options
from segue.core.plugins import PluginHost
from segue.core.spec import SliceSpec, StageSpec
from segue.data.epochs import Share
from segue.data.store_writer import write_store
from segue.data.token_crops import TokenCrops
from segue.data.token_store import TokenStore
from segue.plugins.models.flat_transformer.config import FlatTransformerOptions
from segue.plugins.models.flat_transformer.model import FlatTransformer
from segue.training import engine
from segue.training.guard import LOG
from segue.training.loop import TrainingRun, train
from segue.training.prefetch import Batches
from segue.training.ranks import Ranks, disconnect, ranks
from segue.training.saving import STATE

# --- what the ranks run -----------------------------------------------------------------------

STAGE = StageSpec(
    "fine",
    SliceSpec("acoustic", 0, 2, 7, Fraction(50), "aaaa"),
    (SliceSpec("semantic", 0, 1, 7, Fraction(25), "bbbb"),),
)
ROWS = 8
STORED_SECONDS = 0.4  # of each recording in a store, and of a crop


class Painter(Component):
    """Is trained against a critic; one of its weights is never used."""

    def __init__(self) -> None:
        super().__init__(Options())
        torch.manual_seed(0)
        self.paint = nn.Linear(8, 8)
        self.idle = nn.Linear(2, 2)

    def training_step(self, batch: WaveBatch | StageBatch) -> Mapping[str, Tensor]:
        assert isinstance(batch, WaveBatch)
        return {"loss": (self.paint(batch.wave) - batch.wave).square().mean()}

    def adversary(self) -> Adversary:
        return Critic()

    def adversarial_step(
        self, batch: WaveBatch | StageBatch, adversary: Adversary
    ) -> Mapping[str, Tensor]:
        assert isinstance(batch, WaveBatch)
        made = self.paint(batch.wave)
        figures = dict(adversary(batch.wave, made))
        loss = (made - batch.wave).square().mean() + figures.pop("adversarial")
        return {"loss": loss, **figures}


class CountingTransformer(FlatTransformer):
    """Learns weights, and counts tokens; not those of all ranks unless ``add_up`` does."""

    add_up = staticmethod(summed)

    def __init__(self, config: FlatTransformerOptions, stage: StageSpec) -> None:
        super().__init__(config, stage)
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("each", torch.zeros(7, dtype=torch.long))
        self.register_buffer("steps_taken", torch.zeros((), dtype=torch.long))

    def training_step(self, batch: WaveBatch | StageBatch) -> Mapping[str, Tensor]:
        assert isinstance(batch, StageBatch)
        if self.training:
            ids = batch.target.ids[batch.target.mask[:, None].expand_as(batch.target.ids)]
            self.each += self.add_up(ids.bincount(minlength=7))
            self.seen += self.add_up(batch.target.lengths.sum())
            self.steps_taken += 1
        return super().training_step(batch)


class Host:
    def call_hook(self, name: str, **arguments: Any) -> None: ...


def waves(step: int, share: Share) -> WaveBatch:
    wave = torch.randn(ROWS, 8, generator=torch.Generator().manual_seed(step))
    return WaveBatch(wave[list(share.rows(ROWS))], torch.full((ROWS // share.count,), 8))


class Faulty:
    """Fails with something of its own, on the one rank that calls hooks."""

    @hookimpl
    def segue_train_step(self, part: str, step: int, losses: Mapping[str, float]) -> None:
        if step == 3:
            raise ValueError("no such server")


def faulty() -> PluginHost:
    host = PluginHost()
    host.register(Faulty())
    return host


def lost(step: int, share: Share) -> StageBatch:
    """From the fourth step on, what the second rank draws is not there."""
    if share.index == 1 and step >= 3:
        raise DataError("shard 7", "is missing", "put it back")
    return tokens(step, share)


def waiting(step: int, share: Share) -> StageBatch:
    """From the eleventh step on nothing more is drawn: who trains waits to be killed."""
    if step >= 10:
        time.sleep(600)
    return tokens(step, share)


def stored(directory: Path, away: bool) -> tuple[StageSpec, Batches]:
    """Batches of a real store, each recording a shard; the shards may go as they are read."""
    store = TokenStore(directory, "train")
    known = stage(store, "acoustic 0 1", "semantic")
    crops = TokenCrops(store, known, STORED_SECONDS, ROWS, 0)

    def batches(step: int, share: Share) -> StageBatch:
        if away and step == 3 and share.index == 0:
            directory.rename(directory.with_name("away"))
        return crops.batch(step, share)

    return known, batches


def tokens(step: int, share: Share) -> StageBatch:
    """Ragged: what ranks learn from does not weigh the same."""
    generator = torch.Generator().manual_seed(step)
    rows = list(share.rows(ROWS))
    target = torch.randint(0, 7, (ROWS, 2, 8), generator=generator)
    lengths = torch.randint(1, 9, (ROWS,), generator=generator)
    given = torch.randint(0, 7, (ROWS, 1, 4), generator=generator)
    aligned = Tokens(given[rows], (lengths[rows] + 1) // 2)
    return StageBatch(Tokens(target[rows], lengths[rows]), (aligned,))


def full(step: int, share: Share) -> StageBatch:
    """No row is shorter than others."""
    batch = tokens(step, share)
    return StageBatch(Tokens.full(batch.target.ids), (Tokens.full(batch.given[0].ids),))


def settings(directory: Path, what: str, **changes: Any) -> TrainingRun:
    values = {"steps": 8, "batch_size": ROWS, "learning_rate": 1e-3, "warmup_steps": 2,
              "save_every": 2, "validate_every": 4, "validation_batches": 2, "seed": 3,
              "best": 0}  # fmt: skip
    config = TrainingConfig(**(values | changes))
    what, _, harm = what.partition(", ")
    host: Any = faulty() if harm == "hook fails" else Host()
    if what == "codec":
        return TrainingRun(
            "part", "codec", "it.v1", Painter(), config, directory, waves, waves, host
        )
    spec, batches = STAGE, {"lost": lost, "waits": waiting}.get(harm, tokens)
    if "equal lengths" in harm:
        batches = full
    if what == "store":
        spec, batches = stored(directory.with_name("tokens"), harm == "lost")
    torch.manual_seed(0)
    component: Component
    options = FlatTransformerOptions(width=16, depth=2, heads=2, dropout=0)
    component = FlatTransformer(options, spec)
    if what == "counts":
        component = Counts(CountOptions(), spec)
    elif harm.startswith("counts"):
        component = CountingTransformer(options, spec)
        if "alone" in harm:
            component.add_up = lambda counted: counted  # type: ignore[method-assign]
    valid = lost if harm == "held out lost" else tokens if what == "stage" else None
    return TrainingRun(
        "part", "stage_lm", "it.v1", component, config, directory, batches, valid, host
    )


# --- running them -----------------------------------------------------------------------------


def start(count: int, directory: Path, what: str, **changes: Any) -> list[Fork]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        # As torchrun sets it: Fabric then knows who started the processes.
        "TORCHELASTIC_RUN_ID": "none",
    }
    return [
        Fork(
            *(one_rank, directory, what, changes),
            log=directory.with_name(f"{directory.name}-{rank}.log"),
            **common,
            RANK=str(rank),
            LOCAL_RANK=str(rank),
        )
        for rank in range(count)
    ]


def one_rank(directory: Path, what: str, changes: dict[str, Any]) -> None:
    with clear_errors():
        try:
            train(settings(directory, what, **changes))
        finally:
            disconnect()


def stories(processes: list[Fork], code: int | None = None) -> list[str]:
    """Wait for processes, which end with this code, or with any but 0; what each wrote."""
    ends = [process.wait() for process in processes]
    written = [process.written() for process in processes]
    good = (end == code if code is not None else end not in (0, None) for end in ends)
    assert all(good), f"{ends}: " + "\n".join(written)
    return written


def trained(count: int, directory: Path, what: str, **changes: Any) -> Path:
    """Train in processes of their own; the last checkpoint."""
    stories(start(count, directory, what, **changes), 0)
    newest = newest_checkpoint(directory)
    assert newest is not None
    return newest


def alone(directory: Path, what: str, **changes: Any) -> Path:
    return train(settings(directory, what, **changes))


def figures(directory: Path) -> dict[str, float]:
    """The last line of the log, without what it took."""
    last = json.loads((directory / LOG).read_text().splitlines()[-1])
    return {k: v for k, v in last.items() if "second" not in k and "memory" not in k}


def check_alike(one: Path, other: Path) -> None:
    for file in ("model.safetensors", STATE):
        ours, theirs = load_file(one / file), load_file(other / file)
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            assert torch.allclose(value, theirs[key], rtol=1e-3, atol=2e-5), (file, key)
    assert figures(one.parent) == pytest.approx(figures(other.parent), rel=1e-4, abs=1e-6)


# --- tests ------------------------------------------------------------------------------------

WAYS: list[Any] = [
    ("stage", {"strategy": "ddp"}),
    pytest.param("stage", {"strategy": "fsdp", "ema": 0.5}, marks=pytest.mark.slow),
    pytest.param(
        "stage",
        {"strategy": "fsdp", "accumulate": 2, "activation_checkpointing": True},
        marks=pytest.mark.slow,
    ),
    pytest.param("codec", {"accumulate": 2, "adversary_from": 3}, marks=pytest.mark.slow),
    pytest.param("stage", {"compile": True}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("what", "changes"), WAYS)
def test_two_ranks_learn_what_one_process_does(
    tmp_path: Path, what: str, changes: dict[str, Any]
) -> None:
    together = trained(2, tmp_path / "two", what, **changes)
    check_alike(alone(tmp_path / "one", what, **changes), together)


@pytest.mark.slow
def test_a_checkpoint_is_resumed_by_another_number_of_ranks(tmp_path: Path) -> None:
    """Two sharded ranks, then one process, then two ranks: as one process all the way."""
    whole = alone(tmp_path / "whole", "stage", steps=8, schedule="constant")
    parts = tmp_path / "parts"
    trained(2, parts, "stage", steps=3, schedule="constant", strategy="fsdp")
    alone(parts, "stage", steps=6, schedule="constant")
    check_alike(whole, trained(2, parts, "stage", steps=8, schedule="constant", strategy="fsdp"))


@pytest.mark.slow
def test_counts_are_the_same_on_any_number_of_ranks(tmp_path: Path) -> None:
    """A model without parameters learns the whole batch on each rank."""
    ends = [alone(tmp_path / "one", "counts"), trained(2, tmp_path / "two", "counts")]
    one, two = (load_file(end / "model.safetensors")["counts"] for end in ends)
    assert torch.equal(one, two) and int(one.sum()) > 0
    assert figures(tmp_path / "one") == figures(tmp_path / "two")


@pytest.mark.slow
def test_counts_beside_weights_are_the_same_on_any_number_of_ranks(tmp_path: Path) -> None:
    changes = {"strategy": "ddp"}
    ends = [
        alone(tmp_path / "one", "stage, counts", **changes),
        *(trained(n, tmp_path / f"{n}", "stage, counts", **changes) for n in (2, 4)),
    ]
    for name in ("seen", "each", "steps_taken"):
        one, *others = (load_file(end / "model.safetensors")[name] for end in ends)
        assert all(torch.equal(one, other) for other in others) and int(one.sum()) > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, "buffer seen counts each rank's own rows"),
        ({"accumulate": 4}, "buffer each differs between ranks"),
    ],
)
def test_counts_that_are_not_added_up_are_not_saved(
    tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    """With equal lengths, sums are equal on all ranks and yet too low."""
    one, _ = ended(tmp_path, "stage, counts alone, equal lengths", **changes)
    assert problem in " ".join(one)


COMPILED: list[Any] = [
    ("stage", {}),
    ("stage", {"activation_checkpointing": True}),
    ("codec", {"adversary_from": 1}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("what", "changes"), COMPILED)
def test_what_is_compiled_learns_the_same(
    tmp_path: Path, what: str, changes: dict[str, Any]
) -> None:
    """Two steps, and two of a run that is taken up: as without, and checkpoints tell nothing."""
    changes = {"schedule": "constant", **changes}
    torch._dynamo.reset()
    counters.clear()
    first = alone(tmp_path / "compiled", what, steps=2, compile=True, **changes)
    assert counters["stats"]["unique_graphs"]
    plain = alone(tmp_path / "plain", what, steps=2, **changes)
    check_alike(plain, first)
    check_alike(
        alone(plain.parent, what, steps=4, **changes),
        alone(first.parent, what, steps=4, compile=True, **changes),
    )


@pytest.mark.slow
def test_two_ranks_that_are_killed_end_as_if_they_had_not_been(tmp_path: Path) -> None:
    changes = {"steps": 12, "save_every": 1, "ema": 0.9}
    whole = trained(2, tmp_path / "whole", "stage", **changes)
    parts, kills = tmp_path / "parts", 0
    for wanted in sorted(random.sample(range(10), 3)):
        processes = start(2, parts, "stage, waits", **changes)
        deadline = time.monotonic() + 120
        while saved(parts) < wanted and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.05))
        for process in processes:
            process.kill(signal.SIGKILL)
        kills += sum(process.wait() == -signal.SIGKILL for process in processes)
    assert kills == 6
    last = trained(2, parts, "stage", **changes)
    for file in ("model.safetensors", STATE):
        assert (last / file).read_bytes() == (whole / file).read_bytes()


def saved(directory: Path) -> int:
    newest = newest_checkpoint(directory)
    return -1 if newest is None else int(newest.name.removeprefix("step-"))


@pytest.mark.slow
def test_what_goes_wrong_on_the_first_rank_ends_the_others(tmp_path: Path) -> None:
    """The place is a file: the first rank says so, the other only ends."""
    place = tmp_path / "taken"
    place.write_text("in the way")
    one, other = stories(start(2, place, "stage", steps=1))
    assert str(place) in one and "Traceback" not in other


@pytest.mark.slow
def test_sharded_weights_are_not_trained_in_half_precision(tmp_path: Path) -> None:
    for story in stories(start(2, tmp_path, "stage", strategy="fsdp", precision="16-mixed")):
        assert story.startswith("error: part.training.precision: ")


def ended(directory: Path, what: str, **changes: Any) -> list[list[str]]:
    """Train in two processes that must end by themselves; the lines that each wrote, but for
    PyTorch's warnings."""
    written = stories(start(2, directory, what, **changes), 2)
    assert not any("Traceback" in story for story in written)
    return [[line for line in story.splitlines() if "Warning" not in line] for story in written]


@pytest.mark.parametrize(
    ("harm", "speaker", "sentence"),
    [
        pytest.param("hook fails", 0, "error: segue_train_step: ", marks=pytest.mark.slow),
        ("lost", 1, "error: shard 7: "),
        pytest.param("held out lost", 1, "error: shard 7: ", marks=pytest.mark.slow),
    ],
)
def test_what_fails_on_one_rank_ends_all_with_clear_errors(
    tmp_path: Path, harm: str, speaker: int, sentence: str
) -> None:
    written = ended(tmp_path, f"stage, {harm}", validation_batches=4)
    (said,) = written[speaker]
    assert said.startswith(sentence) and written[1 - speaker] == []


@pytest.mark.slow
def test_tokens_that_vanish_end_a_training_that_goes_on_once_they_are_back(
    tmp_path: Path,
) -> None:
    (tmp_path / "audio").mkdir()
    recordings = [timed(tmp_path / "audio", n % 8, f"{n}", n, 20) for n in range(48)]
    directory = tmp_path / "tokens"
    write_store(directory, clocks(), {"train": recordings}, shard_seconds=STORED_SECONDS)
    whole = trained(2, tmp_path / "whole", "store")
    sentence = rf"{directory}/train-000\d\d\.safetensors: is missing; put it back, or run `segue"
    one, other = ended(tmp_path / "two", "store, lost")
    (said,) = one + other
    assert re.match(f"error: {sentence}", said)
    (tmp_path / "away").rename(directory)
    with pytest.raises(DataError, match=sentence):
        alone(tmp_path / "one", "store, lost")
    (tmp_path / "away").rename(directory)
    last = trained(2, tmp_path / "two", "store")
    for file in ("model.safetensors", STATE):
        assert (last / file).read_bytes() == (whole / file).read_bytes()
    check_alike(whole, alone(tmp_path / "one", "store"))


@pytest.mark.parametrize(
    ("what", "size", "changes", "place"),
    [
        ("codec", 1, {"precision": "16-mixed"}, "precision"),
        ("codec", 1, {"precision": "bf16-true"}, "precision"),
        ("codec", 2, {"strategy": "fsdp"}, "strategy"),
        ("stage", 2, {"strategy": "fsdp", "precision": "16-mixed"}, "precision"),
        ("stage", 2, {"strategy": "fsdp", "lora": {"rank": 2}}, "strategy"),
        ("stage", 2, {"strategy": "fsdp", "optimizer": "muon"}, "optimizer"),
    ],
)
def test_formats_and_strategies_that_do_not_fit_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    size: int,
    changes: dict[str, Any],
    place: str,
) -> None:
    monkeypatch.setattr(engine, "connect", lambda device: Ranks(0, size, 0, size))
    with pytest.raises(TrainingError) as caught:
        alone(tmp_path, what, **changes)
    assert caught.value.place == f"part.training.{place}" and caught.value.fix


def test_half_of_torchruns_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ranks().size == 1 and ranks().first
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(TrainingError, match="torchrun"):
        ranks()
