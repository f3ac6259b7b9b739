"""A codec and its adversary learn in turns from one pass; a training that collapses goes back."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.adversarial_helpers import Critic
from torch import Tensor, nn

from segue.core.checkpoint_files import newest_checkpoint
from segue.core.config import TrainingConfig
from segue.core.errors import TrainingError
from segue.core.interfaces import Adversary, Component, StageBatch, WaveBatch
from segue.core.options import Options
from segue.data.epochs import WHOLE, Share
from segue.training import saving
from segue.training.guard import LOG, ROLLBACKS, SETTLING_STEPS, Guard
from segue.training.learner import make_adversary
from segue.training.loop import TrainingRun, train
from segue.training.saving import STATE


class Painter(Component):
    """Scales what it is given, and would rather be taken for real."""

    def __init__(self) -> None:
        super().__init__(Options())
        torch.manual_seed(0)
        self.paint = nn.Linear(8, 8)
        self.fits: Callable[[Mapping[str, float]], str | None] = lambda figures: None
        self.seen: list[float] = []

    def training_step(self, batch: WaveBatch | StageBatch) -> Mapping[str, Tensor]:
        assert isinstance(batch, WaveBatch)
        self.seen.append(float(batch.wave[0, 0]))
        return {"loss": (self.paint(batch.wave) - batch.wave).square().mean()}

    def adversary(self) -> Adversary:
        return Critic()

    def adversarial_step(
        self, batch: WaveBatch | StageBatch, adversary: Adversary
    ) -> Mapping[str, Tensor]:
        assert isinstance(batch, WaveBatch)
        self.seen.append(float(batch.wave[0, 0]))
        made = self.paint(batch.wave)
        figures = dict(adversary(batch.wave, made))
        loss = (made - batch.wave).square().mean() + figures.pop("adversarial")
        return {"loss": loss, **figures}

    def trouble(self, figures: Mapping[str, float]) -> str | None:
        return self.fits(figures)


class Host:
    def call_hook(self, name: str, **arguments: Any) -> None: ...


def batch_of(step: int, share: Share = WHOLE) -> WaveBatch:
    generator = torch.Generator().manual_seed(step)
    return WaveBatch(torch.randn(4, 8, generator=generator), torch.full((4,), 8))


def run(directory: Path, component: Component | None = None, **changes: Any) -> TrainingRun:
    values = {"steps": 20, "batch_size": 4, "learning_rate": 0.02, "warmup_steps": 2,
              "save_every": 5, "validate_every": 50}  # fmt: skip
    batches = changes.pop("train_batches", batch_of)
    config = TrainingConfig(**(values | changes))
    component = component or Painter()
    return TrainingRun(
        "codec", "codec", "painter.v1", component, config, directory, batches, None, Host()
    )  # type: ignore[arg-type]


MACHINE = {"seconds", "data_seconds", "audio_seconds_per_second", "peak_memory_gib"}


def log(directory: Path) -> dict[int, dict[str, float]]:
    entries = map(json.loads, (directory / LOG).read_text().splitlines())
    return {e["step"]: {k: v for k, v in e.items() if k not in MACHINE} for e in entries}


def test_each_side_takes_the_gradient_of_its_own_loss_only(tmp_path: Path) -> None:
    """One step of plain descent on each loss by itself, from the same start, comes out the same."""
    settings = run(tmp_path, steps=1, warmup_steps=0, gradient_clip=1e9)
    adversary = make_adversary(settings.component, settings.config.seed)
    assert isinstance(adversary, Critic)
    painter, critic = Painter(), Critic()
    critic.load_state_dict(adversary.state_dict())
    own = painter.adversarial_step(batch_of(0), critic)
    wanted = torch.autograd.grad(own["loss"], list(painter.parameters()), retain_graph=True)
    opposed = torch.autograd.grad(own["adversary_loss"], list(critic.parameters()))
    norms = [torch.cat([g.flatten() for g in grads]).norm() for grads in (wanted, opposed)]
    train(settings)
    entry = log(tmp_path)[1]
    assert entry["gradient_norm"] == pytest.approx(float(norms[0]), rel=1e-4)
    assert entry["adversary_gradient_norm"] == pytest.approx(float(norms[1]), rel=1e-4)


def test_both_sides_learn_at_their_own_rates(tmp_path: Path) -> None:
    component = Painter()
    before = component.paint.weight.detach().clone()
    settings = run(tmp_path, component, steps=1, warmup_steps=0, adversary_learning_rate=0.004)
    first = make_adversary(settings.component, settings.config.seed)
    assert first is not None
    train(settings)
    moved = (component.paint.weight.detach() - before).abs().max()
    after = load_file(newest_checkpoint(tmp_path) / STATE)  # type: ignore[operator]
    opposed = (after["adversary.weights.score.weight"] - first.state_dict()["score.weight"]).abs()
    assert float(moved) == pytest.approx(0.02, rel=0.05)  # Adam's first step is the rate itself
    assert float(opposed.max()) == pytest.approx(0.004, rel=0.05)


def test_the_adversary_is_kept_for_resuming_but_is_no_part_of_the_component(tmp_path: Path) -> None:
    last = train(run(tmp_path))
    assert set(load_file(last / "model.safetensors")) == {"paint.weight", "paint.bias"}
    kept = load_file(last / STATE)
    assert "adversary.weights.score.weight" in kept
    assert "adversary.optimizer.0.exp_avg" in kept and "0.exp_avg" in kept


@pytest.mark.parametrize("stop", [3, 5, 7, 13])
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(tmp_path: Path, stop: int) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(run(whole, adversary_from=4))

    def batches(step: int, share: Share = WHOLE) -> WaveBatch:
        if step == stop:
            raise KeyboardInterrupt
        return batch_of(step)

    with pytest.raises(KeyboardInterrupt):
        train(run(parts, adversary_from=4, train_batches=batches))
    train(run(parts, adversary_from=4))
    for file in ("model.safetensors", STATE):
        ends = [(newest_checkpoint(path) / file).read_bytes() for path in (whole, parts)]  # type: ignore[operator]
        assert ends[0] == ends[1]
    assert log(whole)[20] == log(parts)[20]


def test_the_adversary_enters_at_its_step(tmp_path: Path) -> None:
    train(run(tmp_path, adversary_from=15))
    entries = log(tmp_path)
    assert "adversary_loss" not in entries[10] and "adversary_loss" in entries[20]


def test_an_adversary_whose_loss_is_not_finite_moves_neither_side(tmp_path: Path) -> None:
    class Broken(Painter):
        def adversarial_step(
            self, batch: WaveBatch | StageBatch, adversary: Adversary
        ) -> Mapping[str, Tensor]:
            losses = dict(super().adversarial_step(batch, adversary))
            return losses | {"adversary_loss": losses["adversary_loss"] * math.inf}

    component = Broken()
    before = component.paint.weight.detach().clone()
    with pytest.raises(TrainingError, match="was not finite in 11 steps"):
        train(run(tmp_path, component))
    assert torch.equal(component.paint.weight, before)


def test_trouble_takes_training_back_and_draws_other_crops(tmp_path: Path) -> None:
    component = Painter()
    troubled = iter([True, False])

    def fits(figures: Mapping[str, float]) -> str | None:
        return "it paints in grey" if len(component.seen) == 118 and next(troubled) else None

    component.fits = fits
    train(run(tmp_path, component, steps=130))
    notes = [json.loads(line) for line in (tmp_path / ROLLBACKS).read_text().splitlines()]
    # The newest checkpoint, of step 115, may be spoilt as well: the one before is taken.
    assert notes == [{"step": 118, "trouble": "it paints in grey", "back_to": 110}]
    assert len(component.seen) == 118 + 130 - 110
    assert not set(component.seen[110:118]) & set(component.seen[118:])
    assert newest_checkpoint(tmp_path) == tmp_path / "step-00000130"


def test_a_damaged_checkpoint_is_passed_over_on_the_way_back(tmp_path: Path) -> None:
    """And nothing is dropped before another is found to be whole."""
    component = Painter()
    troubled = iter([True, False])

    def fits(figures: Mapping[str, float]) -> str | None:
        if len(component.seen) == 118 and next(troubled):
            (tmp_path / "step-00000110" / "model.safetensors").write_bytes(b"torn")
            return "it paints in grey"
        return None

    component.fits = fits
    train(run(tmp_path, component, steps=120))
    assert len(component.seen) == 118 + 120 - 115


def test_a_checkpoint_that_is_being_dropped_never_looks_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while old ones are deleted, a run goes on from the newest."""
    train(run(tmp_path, steps=10))

    def killed(path: Path, ignore_errors: bool = False) -> None:
        for file in Path(path).glob("*.safetensors"):
            file.unlink()
        if "dropped" in Path(path).name and Path(path).exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(saving.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            train(run(tmp_path, steps=15))
    assert [path.name for path in saving.checkpoints(tmp_path)] == [
        "step-00000010", "step-00000015",
    ]  # fmt: skip
    train(run(tmp_path, steps=20))
    assert not list(tmp_path.glob(".tmp-*"))


def test_trouble_that_returns_ends_training(tmp_path: Path) -> None:
    component = Painter()
    component.fits = lambda figures: "it paints in grey"
    with pytest.raises(TrainingError) as caught:
        train(run(tmp_path, component, steps=400, rollbacks=1))
    assert caught.value.problem == "it paints in grey, after 1 rollbacks"
    assert len((tmp_path / ROLLBACKS).read_text().splitlines()) == 1
    assert newest_checkpoint(tmp_path) is not None


def test_the_guard_judges_running_means_once_they_have_settled() -> None:
    component = Painter()
    asked: list[dict[str, float]] = []
    component.fits = lambda figures: asked.append(dict(figures))
    guard = Guard(component)
    for step in range(SETTLING_STEPS + 1):
        guard.watch(step, {"loss": 1.0, "use": float(step % 2)})
    assert len(asked) == 2 and asked[0].keys() == {"loss", "use"}
    assert asked[-1]["loss"] == pytest.approx(1) and asked[-1]["use"] == pytest.approx(0.5, abs=0.1)
    guard.watch(0, {"loss": math.nan, "use": math.nan})
    guard.watch(1, {"loss": 1.0, "use": 0.0})
    assert asked[-1]["loss"] == pytest.approx(1)
    guard.reset()
    guard.watch(0, {"loss": 1.0})
    assert len(asked) == 3
