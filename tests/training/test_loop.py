"""A run that was stopped, in whatever way, ends as if it had not been."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.forks import Fork
from torch import Tensor, nn

from segue.core.checkpoint import load_component, load_state, save_component
from segue.core.checkpoint_files import newest_checkpoint, read_manifest
from segue.core.config import TrainingConfig
from segue.core.errors import CheckpointError, OutputError, PluginError, TrainingError
from segue.core.interfaces import Component, StageBatch, Tokenizer, Tokens, WaveBatch
from segue.core.options import Options, TokenizerOptions
from segue.core.spec import SliceSpec, StageSpec, TokenSpec
from segue.data.epochs import WHOLE, Share
from segue.plugins.models.flat_transformer.config import FlatTransformerOptions
from segue.plugins.models.flat_transformer.model import FlatTransformer
from segue.training import guard, loop, saving
from segue.training.guard import MAX_SKIPPED_STEPS
from segue.training.learner import learning_rate, make_optimizer
from segue.training.loop import TrainingRun, train

# --- a component that uses all that a resumed run must repeat ---------------------------------


NEEDS_MUON = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="needs torch 2.9")


class TinyOptions(Options):
    width: int = 6


class Tiny(Component):
    """Guesses the sum of a wave; with dropout, noise and a statistic kept in a buffer."""

    config: TinyOptions
    mean: Tensor

    def __init__(self, config: TinyOptions | None = None, seed: int = 0) -> None:
        super().__init__(config or TinyOptions())
        torch.manual_seed(seed)
        width = self.config.width
        self.layers = nn.Sequential(
            nn.Linear(8, width), nn.LayerNorm(width), nn.Dropout(0.2), nn.Linear(width, 1)
        )
        self.register_buffer("mean", torch.zeros(()))
        self.modes: list[tuple[bool, bool]] = []

    def training_step(self, batch: WaveBatch | StageBatch) -> Mapping[str, Tensor]:
        assert isinstance(batch, WaveBatch)
        self.modes.append((self.training, torch.is_grad_enabled()))
        noise = 0.01 * torch.randn_like(batch.wave) + 0.01 * random.random()
        if self.training:
            self.mean.lerp_(batch.wave.detach().nan_to_num().mean().float(), 0.1)
        guess = self.layers(batch.wave + noise)[:, 0]
        loss = (guess - batch.wave.sum(1)).square().mean()
        return {"loss": loss, "error": loss.detach().sqrt()}


class Deep(Tiny):
    """The same, after a linear layer within repeated blocks."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.repeated = nn.ModuleList([nn.Linear(8, 8)])

    def training_step(self, batch: WaveBatch | StageBatch) -> Mapping[str, Tensor]:
        assert isinstance(batch, WaveBatch)
        return super().training_step(WaveBatch(self.repeated[0](batch.wave), batch.lengths))


def batch_of(step: int, share: Share = WHOLE, offset: int = 0) -> WaveBatch:
    generator = torch.Generator().manual_seed(offset + step)
    return WaveBatch(torch.randn(16, 8, generator=generator), torch.full((16,), 8))


def validation_batch(index: int, share: Share = WHOLE) -> WaveBatch:
    return batch_of(index, offset=10_000)


def not_a_number(step: int, share: Share = WHOLE) -> WaveBatch:
    batch = batch_of(step)
    batch.wave[0, 0] = math.nan
    return batch


@dataclass
class StubHost:
    """Keeps the hooks that are called; ``at`` maps a step to what is then done."""

    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    at: dict[int, Callable[[], object]] = field(default_factory=dict)
    component: Component | None = None

    def call_hook(self, name: str, **arguments: Any) -> None:
        self.calls.append((name, arguments))
        if name == "segue_train_step" and arguments["step"] in self.at:
            self.at[arguments["step"]]()

    def find(self, kind: str, use: str, place: str, made_by: Any = None) -> None:
        """Know every component."""

    def create(self, kind: str, use: str, options: Any, *arguments: Any, place: str) -> Component:
        assert self.component is not None
        return self.component


def config(**changes: Any) -> TrainingConfig:
    values = {"steps": 24, "batch_size": 16, "learning_rate": 0.03, "warmup_steps": 3, "seed": 4,
              "save_every": 5, "validate_every": 6, "validation_batches": 3, "best": 0}  # fmt: skip
    return TrainingConfig(**(values | changes))


def run(directory: Path, **changes: Any) -> TrainingRun:
    values: dict[str, Any] = {
        "part": "codec",
        "kind": "codec",
        "use": "tiny.v1",
        "component": Tiny(),
        "config": config(),
        "directory": directory,
        "train_batches": batch_of,
        "valid_batches": validation_batch,
        "host": StubHost(),
    }
    return TrainingRun(**(values | changes))


def interrupt() -> None:
    raise KeyboardInterrupt


#: What a run makes of its machine, which is another each time.
MACHINE = {"seconds", "data_seconds", "audio_seconds_per_second", "tokens_per_second",
           "peak_memory_gib"}  # fmt: skip


def logged(directory: Path) -> dict[int, dict[str, float]]:
    """Return the line of each step, without what it took; no step has two."""
    lines = (directory / guard.LOG).read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert len(entries) == len({entry["step"] for entry in entries})
    return {e["step"]: {k: v for k, v in e.items() if k not in MACHINE} for e in entries}


def trained(directory: Path) -> tuple[bytes, bytes]:
    """All that a checkpoint holds of what was learnt: weights and the optimizer's state."""
    files = ("model.safetensors", saving.STATE)
    weights, state = ((directory / file).read_bytes() for file in files)
    return weights, state


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


# --- learning ---------------------------------------------------------------------------------


def test_the_loss_falls(tmp_path: Path) -> None:
    reports: list[tuple[str, int, int]] = []
    done = run(
        tmp_path,
        config=config(steps=60, learning_rate=0.05, save_every=500),
        report=lambda part, step, total, losses: reports.append((part, step, total)),
    )
    assert train(done) == tmp_path / "step-00000060"
    entries = logged(tmp_path)
    assert entries[60]["valid_loss"] < 0.5 * entries[6]["valid_loss"]
    assert entries[10].keys() == {"step", "loss", "error", "gradient_norm"}
    assert sorted(entries) == sorted({*range(10, 61, 10), *range(6, 61, 6)})
    assert reports == [("codec", step, 60) for step in sorted(entries)]


def test_the_learning_rate_warms_up_and_decays_to_zero() -> None:
    plan = config(steps=100, warmup_steps=10, learning_rate=0.5)
    rates = [learning_rate(plan, step) for step in range(101)]
    assert rates[:3] == pytest.approx([0.05, 0.1, 0.15])
    assert max(rates) == rates[9] == rates[10] == 0.5
    assert rates[55] == pytest.approx(0.25)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert rates[100] == pytest.approx(0, abs=1e-9)
    assert learning_rate(config(steps=5, warmup_steps=0), 0) == config().learning_rate
    assert learning_rate(config(steps=5, warmup_steps=9), 4) < config().learning_rate


def test_vectors_are_not_decayed() -> None:
    component = Tiny()
    component.layers[0].weight.requires_grad_(False)
    decayed, exempt = make_optimizer(component, config(weight_decay=0.1)).param_groups
    assert [p.ndim for p in decayed["params"]] == [2] and decayed["weight_decay"] == 0.1
    assert {p.ndim for p in exempt["params"]} == {1} and exempt["weight_decay"] == 0
    assert len(exempt["params"]) == 4


@NEEDS_MUON
def test_muon_takes_the_matrices_of_blocks_and_adamw_the_rest() -> None:
    component = Deep()
    weight, bias = component.repeated[0].weight, component.repeated[0].bias
    optimizer = make_optimizer(component, config(optimizer="muon", weight_decay=0.0))
    before = weight.detach().clone()
    component.training_step(batch_of(0))["loss"].backward()
    optimizer.step()
    assert set(optimizer.state[weight]) == {"momentum_buffer"}
    others = [p for p in component.parameters() if p is not weight]
    assert all("exp_avg" in optimizer.state[p] for p in others) and bias.grad is not None
    # All directions of a first step have about the same length, that of a step of AdamW.
    lengths = torch.linalg.svdvals(before - weight.detach()) / config().learning_rate
    assert lengths.max() < 2 * 0.2 * 8**0.5 and lengths.median() > 0.5 * 0.2 * 8**0.5


def test_gradients_are_clipped(tmp_path: Path) -> None:
    """Clipped to nothing, a gradient is lost in Adam's epsilon; what is told is its own norm."""
    component = Tiny()
    before = component.layers[0].bias.detach().clone()
    train(run(tmp_path, component=component, config=config(steps=1, gradient_clip=1e-12)))
    assert (component.layers[0].bias - before).abs().max() < 1e-5
    assert logged(tmp_path)[1]["gradient_norm"] > 0.01


def test_training_goes_on_in_train_mode_after_validation(tmp_path: Path) -> None:
    component = Tiny().eval()
    train(run(tmp_path, component=component, config=config(steps=12)))
    learnt, checked = (True, True), (False, False)
    assert component.modes == [*[learnt] * 6, *[checked] * 3, *[learnt] * 6, *[checked] * 3]
    assert component.training


def test_validation_sees_the_same_batches_each_time(tmp_path: Path) -> None:
    seen: list[int] = []

    def batches(index: int, share: Share = WHOLE) -> WaveBatch:
        seen.append(index)
        return validation_batch(index)

    train(run(tmp_path, valid_batches=batches, config=config(steps=12)))
    assert seen == [0, 1, 2, 0, 1, 2]


def test_validation_does_not_alter_what_is_learnt(tmp_path: Path) -> None:
    with_, without = (
        train(run(tmp_path / str(valid), valid_batches=validation_batch if valid else None))
        for valid in (True, False)
    )
    assert trained(with_) == trained(without)


# --- resuming ---------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [5, 7, 23])
def test_an_interrupted_run_ends_like_one_that_was_not(
    tmp_path: Path, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    whole = train(run(tmp_path / "whole"))
    parts = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        train(run(parts, host=StubHost(at={stop: interrupt})))
    saved = (stop - 1) // 5 * 5  # the hook comes before the checkpoint of its step
    assert (newest_checkpoint(parts) is None) == (saved == 0)
    resumed = StubHost()
    # Other initial weights: what counts is in the checkpoint. With none there is nothing to load.
    component = Tiny(seed=0 if saved == 0 else 99)
    torch.rand(17)
    last = train(run(parts, host=resumed, component=component))
    steps = [a["step"] for name, a in resumed.calls if name == "segue_train_step"]
    assert steps == list(range(saved + 1, 25))
    assert last.name == whole.name == "step-00000024"
    assert trained(last) == trained(whole)
    assert logged(parts) == logged(tmp_path / "whole")


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    last = train(run(tmp_path))
    before = trained(last)
    host = StubHost()
    component = Tiny(seed=99)
    assert train(run(tmp_path, host=host, component=component)) == last
    assert host.calls == [] and trained(last) == before
    # The caller's component holds what was trained, not its initial weights.
    assert torch.equal(component.mean, load_file(last / "model.safetensors")["mean"])


def test_a_run_can_be_made_longer(tmp_path: Path) -> None:
    train(run(tmp_path))
    host = StubHost()
    last = train(run(tmp_path, host=host, config=config(steps=26)))
    assert last.name == "step-00000026"
    assert [a["step"] for n, a in host.calls if n == "segue_train_step"] == [25, 26]


def killed_runs(directory: Path, kills: int, steps: int) -> None:
    """Train in processes that are killed at random moments, then in one that comes to its end.

    Processes are forked off this one, which has imported all that takes its time and started no
    thread.
    """
    component = Tiny()
    for parameter in component.parameters():
        parameter.grad = torch.zeros_like(parameter)
    make_optimizer(component, config()).step()

    def tell(what: str) -> None:
        sys.stdout.write(f"{what}\n")
        sys.stdout.flush()

    def start(folder: str, waits_at: int = 0) -> int:
        child = os.fork()
        if child == 0:
            host = StubHost(at={waits_at: signal.pause})  # there it is killed at the latest
            try:
                train(run(directory / folder, host=host, config=config(steps=steps, save_every=1)))
                os._exit(0)
            except BaseException as error:
                tell(repr(error))
                os._exit(1)
        return child

    started = time.monotonic()
    assert os.waitpid(start("whole"), 0)[1] == 0
    step_seconds = (time.monotonic() - started) / steps
    for target in sorted(random.choices(range(steps - 5), k=kills)):
        child = start("killed", waits_at=steps - 2)
        while steps_saved(directory / "killed") < target:
            time.sleep(0.001)
        time.sleep(random.uniform(0, 2 * step_seconds))
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        left = names(directory / "killed") if (directory / "killed").exists() else []
        tell(f"killed after step {steps_saved(directory / 'killed')}, left {left}")
    tell(f"ended with {os.waitpid(start('killed'), 0)[1]}")


def held_run(directory: Path) -> None:
    """Train until the third step and wait there, beside a process forked off as workers are."""

    def hold() -> None:
        if worker := os.fork():
            sys.stdout.write(f"{worker}\n")
            sys.stdout.flush()
        signal.pause()

    train(run(directory, host=StubHost(at={2: hold})))


def test_two_processes_do_not_train_in_one_directory(tmp_path: Path) -> None:
    process = Fork(held_run, tmp_path / "run", log=tmp_path / "told")
    until = time.monotonic() + 60
    while not (tmp_path / "told").is_file() or not process.written().endswith("\n"):
        assert time.monotonic() < until
        time.sleep(0.05)
    try:
        with pytest.raises(TrainingError, match="another process trains here; wait for it"):
            train(run(tmp_path / "run"))
        train(run(tmp_path / "other", config=config(steps=2)))
        process.kill(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert train(run(tmp_path / "run")).name == f"step-{config().steps:08d}"
    finally:
        os.kill(int(process.written()), signal.SIGKILL)
        with suppress(ProcessLookupError):
            process.kill(signal.SIGKILL)
    assert not (tmp_path / "run" / saving.CLAIM).exists()


def steps_saved(directory: Path) -> int:
    newest = newest_checkpoint(directory)
    return 0 if newest is None else int(newest.name.removeprefix("step-"))


@pytest.mark.parametrize(("kills", "steps"), [(2, 8), pytest.param(24, 16, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_again_and_again_ends_the_same(
    tmp_path: Path, kills: int, steps: int
) -> None:
    process = Fork(killed_runs, tmp_path, kills, steps, log=tmp_path / "told")
    code, story = process.wait(), process.written()
    assert code == 0 and "ended with 0" in story, story
    assert story.count("killed after step") == kills, story
    whole, killed = (newest_checkpoint(tmp_path / name) for name in ("whole", "killed"))
    assert whole is not None and killed is not None
    assert whole.name == killed.name == f"step-{steps:08d}", story
    assert trained(whole) == trained(killed), story
    assert logged(tmp_path / "killed") == logged(tmp_path / "whole"), story
    # What was half written is gone, too: a checkpoint may be large.
    kept = [f"step-{step:08d}" for step in (steps - 1, steps)]
    assert names(tmp_path / "killed") == ["log.jsonl", *kept], story


# --- components that break their contract -----------------------------------------------------


@pytest.mark.parametrize(
    ("call", "result", "problem"),
    [
        ("training_step", {"error": torch.ones(())}, "no 'loss'"),
        ("training_step", {"loss": torch.ones(3)}, r"loss as torch.float32 \[3\]"),
        ("training_step", {"loss": 1.0}, "loss as a float"),
        ("training_step", {"loss": torch.ones((), dtype=torch.long)}, "loss as torch.int64"),
        ("training_step", {"loss": torch.ones(())}, "'loss' without a gradient"),
        ("training_step", {"loss": torch.ones((), device="meta")}, "on meta"),
        ("weight_of", "much", "returned a str"),
        ("weight_of", math.nan, "weight_of returned nan"),
        ("weight_of", -1.0, "weight_of returned -1"),
    ],
)
def test_what_a_component_breaks_while_it_learns_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, result: object, problem: str
) -> None:
    monkeypatch.setattr(Tiny, call, lambda self, batch: result)
    with pytest.raises(PluginError, match=problem) as caught:
        train(run(tmp_path))
    assert caught.value.place == "Tiny of tests"


@pytest.mark.parametrize("call", ["training_step", "weight_of"])
def test_a_component_that_fails_while_it_learns_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fails(self: object, batch: object) -> None:
        raise ValueError("no luck")

    monkeypatch.setattr(Tiny, call, fails)
    with pytest.raises(PluginError, match=f"{call} failed: ValueError: no luck"):
        train(run(tmp_path))


# --- losses that are not finite ---------------------------------------------------------------


def test_a_step_without_a_finite_loss_changes_no_weight(tmp_path: Path) -> None:
    component, seen = Tiny(), []

    def keep() -> None:
        seen.append([p.detach().clone() for p in component.parameters()])

    def batches(step: int, share: Share = WHOLE) -> WaveBatch:
        return not_a_number(step) if step == 3 else batch_of(step)

    host = StubHost(at={3: keep, 4: keep, 5: keep})
    train(run(tmp_path, component=component, host=host, train_batches=batches))
    before, after, later = seen
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(after, later, strict=True))
    losses = {a["step"]: a["losses"]["loss"] for n, a in host.calls if n == "segue_train_step"}
    assert math.isnan(losses[4]) and all(math.isfinite(v) for s, v in losses.items() if s != 4)
    assert all(p.isfinite().all() for p in component.parameters())


@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_a_gradient_that_is_not_finite_counts_too(tmp_path: Path, precision: str) -> None:
    """In half precision, once no smaller scale of the loss can help."""

    class Steep(Tiny):
        def training_step(self, batch: WaveBatch | StageBatch) -> Mapping[str, Tensor]:
            zero = self.layers[0].weight.sum() * 0
            return {"loss": zero.sqrt()}  # 0, with an infinite slope

    component = Steep()
    before = [p.detach().clone() for p in component.parameters()]
    settings = config(precision=precision, steps=200)
    with pytest.raises(TrainingError, match="was not finite"):
        train(run(tmp_path, component=component, valid_batches=None, config=settings))
    pairs = zip(before, component.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("spoilt", [[], [2, 12, 13]])
def test_a_scale_too_large_for_half_precision_goes_down(tmp_path: Path, spoilt: list[int]) -> None:
    """No weight moves until gradients fit. Losses that are not finite leave the scale alone."""
    component, seen = Tiny(), [bias(Tiny())]

    def batches(step: int, share: Share = WHOLE) -> WaveBatch:
        return not_a_number(step) if step in spoilt else batch_of(step)

    host = StubHost(at=dict.fromkeys(range(1, 25), lambda: seen.append(bias(component))))
    settings = config(precision="16-mixed", learning_rate=1e-3)
    last = train(
        run(tmp_path, component=component, host=host, train_batches=batches, config=settings)
    )
    losses = [a["losses"] for name, a in host.calls if name == "segue_train_step"]
    skipped = [index for index, figures in enumerate(losses) if math.isnan(figures["loss"])]
    overflown = [index for index, figures in enumerate(losses) if "overflow" in figures]
    moved = [not torch.equal(a, b) for a, b in itertools.pairwise(seen)]
    assert skipped == spoilt and 2 < len(overflown) < 12
    assert [i for i in range(24) if not moved[i]] == sorted(skipped + overflown)
    state = json.loads((last / saving.STATE_JSON).read_text())
    assert state["scaler"]["scale"] == 2.0 ** (16 - len(overflown))


def test_a_loss_that_stays_non_finite_ends_training_with_advice(tmp_path: Path) -> None:
    def batches(step: int, share: Share = WHOLE) -> WaveBatch:
        return batch_of(step) if step < 7 else not_a_number(step)

    with pytest.raises(TrainingError) as caught:
        train(run(tmp_path, part="stages.fine", train_batches=batches))
    error = caught.value
    assert error.place == "stages.fine"
    skipped = MAX_SKIPPED_STEPS + 1
    said = f"the loss was not finite in {skipped} steps up to step 16"
    assert error.problem == f"{said}, after 2 rollbacks"
    assert "learning_rate" in error.fix
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert all(t.isfinite().all() for t in load_file(newest / "model.safetensors").values())


@pytest.mark.parametrize("steps", [1, MAX_SKIPPED_STEPS])
def test_a_short_training_that_learns_nothing_has_failed(tmp_path: Path, steps: int) -> None:
    def batches(step: int, share: Share = WHOLE) -> WaveBatch:
        return not_a_number(step)

    with pytest.raises(TrainingError, match=f"not finite in {steps} steps up to step {steps}"):
        train(run(tmp_path, train_batches=batches, config=config(steps=steps)))
    assert newest_checkpoint(tmp_path) is None


def test_a_step_that_was_skipped_is_not_saved(tmp_path: Path) -> None:
    def batches(step: int, share: Share = WHOLE) -> WaveBatch:
        return not_a_number(step) if step == 9 else batch_of(step)

    host = StubHost()
    train(run(tmp_path, host=host, train_batches=batches, config=config(steps=16)))
    saved = [a["step"] for name, a in host.calls if name == "segue_checkpoint_saved"]
    assert saved == [5, 15, 16]


def test_now_and_then_a_non_finite_loss_is_borne(tmp_path: Path) -> None:
    def batches(step: int, share: Share = WHOLE) -> WaveBatch:
        return batch_of(step) if step % (MAX_SKIPPED_STEPS + 1) == 0 else not_a_number(step)

    last = train(run(tmp_path, train_batches=batches, config=config(steps=40)))
    assert last.name == "step-00000040"


# --- checkpoints ------------------------------------------------------------------------------


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    train(run(tmp_path))
    assert names(tmp_path) == ["log.jsonl", "notes", "step-00000020", "step-00000024"]


def test_the_best_checkpoints_are_kept_beside_the_newest(tmp_path: Path) -> None:
    """Validation gets worse after step 9: that one is saved although it is no multiple of 5."""

    class Scored(Tiny):
        def training_step(self, batch: WaveBatch | StageBatch) -> Mapping[str, Tensor]:
            losses = dict(super().training_step(batch))
            if not self.training:
                step = len([mode for mode in self.modes if mode[0]])
                losses["loss"] = torch.tensor(abs(step - 9.0))
            return losses

    train(run(tmp_path, component=Scored(), config=config(best=1, keep=1, validate_every=3)))
    assert names(tmp_path) == ["log.jsonl", "step-00000009", "step-00000024"]
    assert saving.lowest_loss(tmp_path) == 0


def test_running_means_are_what_is_validated_and_saved(tmp_path: Path) -> None:
    """With a decay of 0.5 the mean is that of the formula; the run goes on from the weights."""
    component, seen = Tiny(), []
    host = StubHost(at=dict.fromkeys(range(1, 8), lambda: seen.append(bias(component))))
    last = train(run(tmp_path, component=component, host=host, config=config(steps=7, ema=0.5)))
    mean = bias(Tiny())
    for updates, value in enumerate(seen, start=1):
        decay = min(0.5, (1 + updates) / (10 + updates))
        mean = decay * mean + (1 - decay) * value
    saved = load_file(last / "model.safetensors")["layers.3.bias"]
    assert torch.allclose(saved, mean, atol=1e-6) and not torch.equal(saved, seen[-1])
    assert torch.equal(bias(component), seen[-1])


def bias(component: Tiny) -> Tensor:
    return component.layers[3].bias.detach().clone()


@pytest.mark.parametrize(
    "changes",
    [
        {"ema": 0.9, "schedule": "inverse_sqrt", "precision": "bf16-mixed"},
        {"schedule": "linear", "workers": 2},
        {"precision": "16-mixed", "accumulate": 2},
        pytest.param({"optimizer": "muon", "ema": 0.9}, marks=NEEDS_MUON),
    ],
)
def test_whatever_is_asked_for_an_interrupted_run_ends_the_same(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    settings: dict[str, Any] = {"train_batches": shared_batch, "config": config(**changes)}
    whole = train(run(tmp_path / "whole", component=Deep(), **settings))
    parts = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        train(run(parts, component=Deep(), host=StubHost(at={13: interrupt}), **settings))
    last = train(run(parts, component=Deep(seed=99), **settings))
    assert trained(last) == trained(whole)
    states = [json.loads((path / saving.STATE_JSON).read_text()) for path in (whole, last)]
    assert states[0] == states[1]


def shared_batch(step: int, share: Share) -> WaveBatch:
    batch = batch_of(step)
    rows = list(share.rows(16))
    return WaveBatch(batch.wave[rows], batch.lengths[rows])


def test_pieces_add_up_to_the_whole_batch(tmp_path: Path) -> None:
    """Rows of unequal length count as they would in one batch."""

    def batches(step: int, share: Share) -> StageBatch:
        target = stage_batch(step).target
        rows = list(share.rows(2))
        given = stage_batch(step).given[0]
        return StageBatch(
            Tokens(target.ids[rows], torch.tensor([4, 2])[rows]),
            (Tokens(given.ids[rows], given.lengths[rows]),),
        )

    ends = {}
    for pieces in (1, 2):
        settings = config(steps=4, batch_size=2, accumulate=pieces, learning_rate=1e-3)
        directory = tmp_path / str(pieces)
        last = train(
            run(
                directory,
                part="stages.fine",
                kind="stage_lm",
                component=stage_lm(),
                train_batches=batches,
                valid_batches=None,
                config=settings,
            )
        )
        ends[pieces] = load_file(last / "model.safetensors"), logged(directory)[4]
    for key, value in ends[1][0].items():
        assert torch.allclose(value, ends[2][0][key], atol=1e-5), key
    assert ends[1][1] == pytest.approx(ends[2][1], rel=1e-4)


def test_what_is_computed_again_is_what_was_computed(tmp_path: Path) -> None:
    """Activation checkpointing changes memory, and nothing that is learnt."""
    ends = []
    for again in (False, True):
        settings = config(steps=3, batch_size=2, activation_checkpointing=again)
        stage = {"part": "stages.fine", "kind": "stage_lm", "component": stage_lm()}
        batches = {"train_batches": stage_batch, "valid_batches": None}
        ends.append(trained(train(run(tmp_path / str(again), config=settings, **stage, **batches))))
    assert ends[0] == ends[1]


def test_hooks_are_called_with_what_they_promise(tmp_path: Path) -> None:
    complete: list[bool] = []

    class Host(StubHost):
        def call_hook(self, name: str, **arguments: Any) -> None:
            super().call_hook(name, **arguments)
            if name == "segue_checkpoint_saved":
                load_state(Tiny(), arguments["directory"], "tiny.v1")
                complete.append(newest_checkpoint(tmp_path) == arguments["directory"])

    host = Host()
    train(run(tmp_path, host=host, part="codec", config=config(steps=11)))
    steps = [arguments for name, arguments in host.calls if name == "segue_train_step"]
    assert [a["step"] for a in steps] == list(range(1, 12))
    assert all(a.keys() == {"part", "step", "losses"} and a["part"] == "codec" for a in steps)
    assert all(a["losses"].keys() >= {"loss", "error", "gradient_norm", "seconds"} for a in steps)
    assert all(isinstance(value, float) for a in steps for value in a["losses"].values())
    saved = [arguments for name, arguments in host.calls if name == "segue_checkpoint_saved"]
    assert saved == [
        {"part": "codec", "directory": tmp_path / f"step-{step:08d}", "step": step}
        for step in (5, 10, 11)
    ]
    assert complete == [True] * 3
    order = [name for name, arguments in host.calls if arguments["step"] == 5]
    assert order == ["segue_train_step", "segue_checkpoint_saved"]
    told = [arguments for name, arguments in host.calls if name == "segue_train_logged"]
    assert [a["step"] for a in told] == [6, 10, 11]
    assert all(a["directory"] == tmp_path and "peak_memory_gib" in a["figures"] for a in told)


def test_a_checkpoint_says_what_it_is(tmp_path: Path) -> None:
    last = train(run(tmp_path, notes={"data": "here"}))
    manifest = read_manifest(last)
    assert (manifest.kind, manifest.use, manifest.options) == ("codec", "tiny.v1", {"width": 6})
    assert manifest.trained == {"steps": 24, "seed": 4, "data": "here"}
    state = json.loads((last / saving.STATE_JSON).read_text())
    assert state.pop("valid_loss") == pytest.approx(logged(tmp_path)[24]["valid_loss"], rel=1e-5)
    assert state == {"step": 24, "training": config().model_dump(mode="json")}


def test_an_incomplete_checkpoint_is_not_resumed(tmp_path: Path) -> None:
    last = train(run(tmp_path))
    (tmp_path / "step-00000099").mkdir()
    (tmp_path / "step-00000099" / "model.safetensors").write_bytes(b"half")
    assert newest_checkpoint(tmp_path) == last
    assert newest_checkpoint(tmp_path / "nowhere") is None


@pytest.mark.parametrize("what", ["width", "use"])
def test_a_checkpoint_of_other_options_is_not_resumed(tmp_path: Path, what: str) -> None:
    last = train(run(tmp_path))
    before = trained(last)
    changes: dict[str, Any] = {"use": "tiny.v2"}
    if what == "width":
        changes = {"component": Tiny(TinyOptions(width=5))}
    with pytest.raises(CheckpointError) as caught:
        train(run(tmp_path, config=config(steps=30), **changes))
    assert caught.value.place == str(last)
    assert names(tmp_path)[-1] == last.name and trained(last) == before


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


def spoil(path: Path) -> None:
    path.write_text("not what it was")


FILES = ["model.safetensors", saving.STATE, saving.STATE_JSON, "component.json"]


@pytest.mark.parametrize(
    ("file", "harm"),
    [
        *((file, cut) for file in FILES),
        (saving.STATE_JSON, spoil),
        (saving.STATE_JSON, Path.unlink),
        (saving.STATE, Path.unlink),
    ],
)
def test_a_damaged_checkpoint_is_named(
    tmp_path: Path, file: str, harm: Callable[[Path], object]
) -> None:
    last = train(run(tmp_path, config=config(steps=6)))
    harm(last / file)
    if newest_checkpoint(tmp_path) != last:
        assert (file, harm) == (saving.STATE_JSON, Path.unlink)  # it no longer counts as one
        return
    with pytest.raises(CheckpointError) as caught:
        train(run(tmp_path, config=config(steps=7)))
    assert str(last) in caught.value.place
    assert caught.value.problem and caught.value.fix


def test_the_checkpoint_before_a_damaged_one_can_be_resumed(tmp_path: Path) -> None:
    last = train(run(tmp_path))
    before = trained(last)
    cut(last / saving.STATE)
    with pytest.raises(CheckpointError):
        train(run(tmp_path))
    shutil.rmtree(last)
    host = StubHost()
    train(run(tmp_path, host=host))
    assert host.calls[0][1]["step"] == 21 and trained(last) == before


def test_a_full_disk_leaves_the_checkpoints_there_are(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))  # bytes of any one file

    try:
        with pytest.raises(OutputError) as caught:
            train(run(tmp_path, host=StubHost(at={15: fill}), valid_batches=None))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.place == f"{tmp_path}/step-00000015"
    assert names(tmp_path) == ["log.jsonl", "step-00000005", "step-00000010"]
    assert trained(train(run(tmp_path))) == trained(train(run(tmp_path / "whole")))


def test_a_log_that_cannot_be_written_ends_a_run_that_goes_on_later(tmp_path: Path) -> None:
    whole = train(run(tmp_path / "whole"))
    parts, moved = tmp_path / "parts", tmp_path / "moved"
    log = parts / guard.LOG

    def harm() -> None:
        log.rename(moved)
        log.mkdir()

    with pytest.raises(OutputError) as caught:
        train(run(parts, host=StubHost(at={7: harm})))
    assert caught.value.place == str(log)
    log.rmdir()
    moved.rename(log)
    assert trained(train(run(parts))) == trained(whole)
    assert logged(parts) == logged(tmp_path / "whole")


def test_an_output_directory_that_is_taken_away_is_told(tmp_path: Path) -> None:
    whole = train(run(tmp_path / "whole"))
    parts, moved = tmp_path / "parts", tmp_path / "moved"

    def harm() -> None:
        parts.rename(moved)
        parts.write_text("in the way")

    with pytest.raises(OutputError, match=r"parts/step-00000015"):
        train(run(parts, host=StubHost(at={13: harm}), valid_batches=None))
    parts.unlink()
    moved.rename(parts)
    assert trained(train(run(parts))) == trained(whole)


def test_a_full_disk_cuts_no_line_of_the_log(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        most = (tmp_path / guard.LOG).stat().st_size + 30  # bytes: some of the next line
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))

    try:
        with pytest.raises(OutputError, match=r"log\.jsonl"):
            train(run(tmp_path, host=StubHost(at={9: fill}), config=config(save_every=99)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(logged(tmp_path)) == [6]


# --- saving and loading components ------------------------------------------------------------


class TableOptions(TokenizerOptions):
    def spec(self) -> TokenSpec:
        return TokenSpec(16_000, Fraction(50), 1, 7)


class Table(Tokenizer):
    """Its one tensor determines what its tokens mean."""

    def __init__(self) -> None:
        super().__init__(TableOptions())
        self.table = nn.Parameter(torch.arange(21.0).view(7, 3) / 10)

    def encode(self, wave: Tensor, lengths: Tensor) -> Tokens:
        raise NotImplementedError


STAGE = StageSpec(
    "fine",
    SliceSpec("acoustic", 0, 2, 7, Fraction(50), "aaaa"),
    (SliceSpec("semantic", 0, 1, 7, Fraction(25), "bbbb"),),
)


def other_tokens(stage: StageSpec = STAGE) -> StageSpec:
    data = stage.to_json()
    data["given"][0]["fingerprint"] = "cccc"
    return StageSpec.from_json(data)


def stage_lm(stage: StageSpec = STAGE) -> FlatTransformer:
    torch.manual_seed(0)
    return FlatTransformer(FlatTransformerOptions(width=8, depth=1, heads=1, dropout=0), stage)


def save(component: Component, directory: Path, kind: str = "codec", **options: Any) -> Path:
    directory.mkdir(exist_ok=True)
    save_component(component, directory, kind, "it.v1", {"steps": 1}, **options)
    return directory


def load(directory: Path, blank: Component) -> Component:
    return load_component(directory, StubHost(component=blank), "codec")  # type: ignore[arg-type]


def test_a_tokenizer_comes_back_with_its_fingerprint(tmp_path: Path) -> None:
    saved = Table()
    save(saved, tmp_path)
    blank = Table()
    nn.init.zeros_(blank.table)
    loaded = load(tmp_path, blank)
    assert isinstance(loaded, Table) and not loaded.training
    assert torch.equal(loaded.table, saved.table)
    assert loaded.spec == saved.spec == read_manifest(tmp_path).token_spec
    assert len(loaded.spec.fingerprint) == 16


def test_weights_that_were_tampered_with_are_refused(tmp_path: Path) -> None:
    save(Table(), tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors["table"][3, 1] += 1e-6
    save_file(tensors, path)
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path, Table())
    recorded = read_manifest(tmp_path).token_spec
    assert recorded is not None
    assert caught.value.place == str(tmp_path)
    assert recorded.fingerprint in caught.value.problem
    assert "tokens would change their meaning" in caught.value.fix


def test_the_manifest_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    other = Table()
    nn.init.ones_(other.table)
    save(other, tmp_path / "other")
    save(Table(), tmp_path / "own")
    (tmp_path / "other" / "component.json").replace(tmp_path / "own" / "component.json")
    with pytest.raises(CheckpointError, match="restore both files"):
        load(tmp_path / "own", Table())


def test_half_precision_stages_become_whole_again(tmp_path: Path) -> None:
    saved = stage_lm()
    full = save(saved, tmp_path / "full", "stage_lm")
    half = save(saved, tmp_path / "half", "stage_lm", dtype=torch.float16)
    stored = load_file(half / "model.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.float16}
    sizes = [(d / "model.safetensors").stat().st_size for d in (full, half)]
    assert sizes[1] < 0.7 * sizes[0]
    loaded = load(half, stage_lm())
    for key, value in loaded.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, saved.state_dict()[key].half().float())
    assert {p.dtype for p in saved.parameters()} == {torch.float32}
    assert read_manifest(half).stage_spec == STAGE


def test_a_tokenizer_is_never_stored_in_half_precision(tmp_path: Path) -> None:
    save(Table(), tmp_path, dtype=torch.float16)
    assert load_file(tmp_path / "model.safetensors")["table"].dtype == torch.float32
    load(tmp_path, Table())


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (lambda d: cut(d / "model.safetensors"), "cannot be read"),
        (lambda d: spoil(d / "model.safetensors"), "cannot be read"),
        (lambda d: save_file({"other": torch.zeros(1)}, d / "model.safetensors"), "does not fit"),
        (lambda d: save_file({"table": torch.zeros(7, 4)}, d / "model.safetensors"), "not fit"),
        (lambda d: (d / "model.safetensors").unlink(), "holds no model.safetensors"),
        (lambda d: (d / "component.json").unlink(), "holds no component.json"),
        (lambda d: cut(d / "component.json"), "cannot be read"),
        (lambda d: (d / "component.json").write_text("[]"), "cannot be read"),
        (lambda d: (d / "component.json").write_text('{"format_version": 1}'), "cannot be read"),
        (lambda d: (d / "component.json").write_bytes(b"\xff\xfe"), "cannot be read"),
    ],
)
def test_damaged_components_are_named(
    tmp_path: Path, harm: Callable[[Path], object], problem: str
) -> None:
    save(Table(), tmp_path)
    harm(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path, Table())
    assert str(tmp_path) in caught.value.place
    assert problem in caught.value.problem and caught.value.fix
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_format_version_is_refused(tmp_path: Path, version: object) -> None:
    save(Table(), tmp_path)
    path = tmp_path / "component.json"
    data = json.loads(path.read_text()) | {"format_version": version}
    path.write_text(json.dumps(data))
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path, Table())
    assert caught.value.place == str(path)
    assert f"has format version {version!r}, this Segue reads 1" in caught.value.problem
    assert "install the Segue that wrote it" in caught.value.fix


def stage_batch(step: int, share: Share = WHOLE) -> StageBatch:
    generator = torch.Generator().manual_seed(step)
    target = torch.randint(0, 7, (2, 2, 4), generator=generator)
    given = torch.randint(0, 7, (2, 1, 2), generator=generator)
    return StageBatch(Tokens.full(target), (Tokens.full(given),))


def test_a_stage_is_not_trained_on_with_other_tokens(tmp_path: Path) -> None:
    """Its weights would be of the old tokens, its checkpoint would name the new ones."""
    values = {"part": "stages.fine", "kind": "stage_lm", "train_batches": stage_batch,
              "valid_batches": None}  # fmt: skip
    last = train(run(tmp_path, component=stage_lm(), config=config(steps=2), **values))
    assert read_manifest(last).stage_spec == STAGE
    changed = run(tmp_path, component=stage_lm(other_tokens()), config=config(steps=4), **values)
    with pytest.raises(CheckpointError, match=r"other tokens") as caught:
        train(changed)
    assert caught.value.place == str(last)
    train(run(tmp_path, component=stage_lm(), config=config(steps=4), **values))
