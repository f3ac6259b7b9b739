"""A stage model without parameters takes part: it counts while it is trained, or is fitted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, distributed

from segue.core.config_files import load_config
from segue.core.errors import PluginError, TrainingError
from segue.core.hookspecs import hookimpl
from segue.core.interfaces import StageBatch, StageLM, StageLoss, Tokens, WaveBatch
from segue.core.options import Options, Sampling
from segue.core.plugins import PluginHost
from segue.core.records import PluginRecord
from segue.core.sampling import sample
from segue.core.spec import StageSpec
from segue.data.token_crops import TokenCrops
from segue.data.token_store import TokenStore
from segue.inference.pipeline import Pipeline
from segue.testing import TINY_STAGES, Subject, checks_for
from segue.testing.check import run_check
from segue.training.counts import check_equal
from segue.training.guard import Guard
from segue.training.ranks import Ranks
from segue.training.workspace import Workspace, train_part


class CountOptions(Options):
    pass


class Counts(StageLM):
    """Draw each token by how often it was seen at its level."""

    counts: Tensor

    def __init__(self, config: Options, stage: StageSpec) -> None:
        super().__init__(config, stage)
        shape = (stage.target.num_levels, stage.target.codebook_size)
        self.register_buffer("counts", torch.zeros(shape, dtype=torch.long))

    def add(self, batch: StageBatch) -> None:
        for level in range(self.counts.shape[0]):
            ids = batch.target.ids[:, level][batch.target.mask]
            self.counts[level] += ids.bincount(minlength=self.counts.shape[1])

    def training_step(self, batch: WaveBatch | StageBatch) -> Mapping[str, Tensor]:
        assert isinstance(batch, StageBatch)
        if self.training:
            self.add(batch)
        return super().training_step(batch)

    def loss(self, batch: StageBatch) -> StageLoss:
        counted = batch.target.mask if batch.counted is None else batch.target.mask & batch.counted
        levels = -(self.score(batch) * counted[:, None]).sum((0, 2)) / counted.sum()
        return StageLoss(levels.mean(), levels)

    def shares(self) -> Tensor:
        return (self.counts + 1.0).log().log_softmax(1)

    def score(self, batch: StageBatch) -> Tensor:
        levels = [row[batch.target.ids[:, level]] for level, row in enumerate(self.shares())]
        return torch.stack(levels, dim=1) * batch.target.mask[:, None]

    def generate(
        self,
        given: tuple[Tokens, ...],
        prompt: Tokens,
        num_frames: int,
        sampling: Sampling,
        generators: Sequence[torch.Generator],
    ) -> Tokens:
        levels = [row.expand(len(generators), -1) for row in self.shares()]
        frames = [
            torch.stack([sample(row, sampling, generators) for row in levels], dim=1)
            for _ in range(num_frames)
        ]
        return Tokens.full(torch.stack(frames, dim=2))


class FittedCounts(Counts):
    needs_training, needs_fitting = False, True

    def fit(self, batches: Iterable[Any]) -> Mapping[str, float]:
        for batch in batches:
            self.add(batch)
        return {"tokens": float(self.counts.sum())}


class Plugin:
    @hookimpl
    def segue_register_stage_lms(self) -> list[PluginRecord]:
        models = {"counts.v1": "Counts", "fitted_counts.v1": "FittedCounts"}
        return [
            PluginRecord("stage_lm", name, f"{__name__}:{model}", f"{__name__}:CountOptions")
            for name, model in models.items()
        ]


@pytest.fixture
def host() -> PluginHost:
    found = PluginHost.discover(entry_points=False)
    found.register(Plugin())
    return found


@pytest.mark.parametrize("model", [Counts, FittedCounts])
def test_a_model_without_parameters_conforms(model: type[StageLM]) -> None:
    subject = Subject("stage_lm", model, CountOptions(), TINY_STAGES["first"])
    checks = [c for c in checks_for("stage_lm") if c.name != "options_import_no_torch"]
    results = [run_check(check, subject) for check in checks]
    assert [str(result) for result in results if not result.ok] == []
    assert subject.create().get_buffer("counts").any()  # checked as it is once it has learnt


def workspace(
    directory: Path, tiny: Path, host: PluginHost, use: str, steps: int = 4
) -> tuple[Workspace, TokenStore]:
    directory.mkdir()
    (directory / "tokens").symlink_to(tiny.parent / "tokens")
    lm = "stages.semantic.lm"
    settings = (f"{lm}.use={use}", f"{lm}.checkpoint=null", f"{lm}.options={{}}")
    steps_ = (f"{lm}.training.steps={steps}", f"{lm}.training.validate_every=2")
    config = load_config(tiny / "pipeline.yaml", host, [*settings, *steps_]).config
    return Workspace(config, directory, None, host), TokenStore(directory / "tokens", "train")


def counts(checkpoint: Path) -> Tensor:
    return load_file(checkpoint / "model.safetensors")["counts"]


def test_a_model_that_only_counts_is_trained_resumed_and_used(
    tmp_path: Path, tiny_pipelines: dict[str, Path], host: PluginHost
) -> None:
    tiny = tiny_pipelines["speech"]
    space, store = workspace(tmp_path / "whole", tiny, host, "counts.v1")
    last = train_part(space, "stages.semantic")
    config = space.config.parts["stages.semantic"].training
    seconds = space.config.stages[0].crop_seconds
    stage = Pipeline.from_config(space.current(), host=host).stage_lm("semantic").stage
    crops = TokenCrops(store, stage, seconds, config.batch_size, config.seed)
    seen = [crops.batch(step).target for step in range(4)]
    ids = torch.cat([tokens.ids[:, 0][tokens.mask] for tokens in seen])
    assert torch.equal(counts(last)[0], ids.bincount(minlength=16))

    part, _ = workspace(tmp_path / "parts", tiny, host, "counts.v1", steps=2)
    train_part(part, "stages.semantic")
    part.config = space.config
    assert torch.equal(counts(train_part(part, "stages.semantic")), counts(last))


def test_a_model_that_is_only_fitted_gets_every_crop_once(
    tmp_path: Path, tiny_pipelines: dict[str, Path], host: PluginHost
) -> None:
    space, store = workspace(tmp_path / "run", tiny_pipelines["speech"], host, "fitted_counts.v1")
    told: list[tuple[str, int, int]] = []
    space.progress = lambda part, done, total: told.append((part, done, total))
    last = train_part(space, "stages.semantic")
    lm = Pipeline.from_config(space.current(), host=host).stage_lm("semantic")
    assert isinstance(lm, FittedCounts) and torch.equal(lm.counts, counts(last))
    crops = TokenCrops(store, lm.stage, space.config.stages[0].crop_seconds, 1, 0)
    frames = sum(int(crops.batch(n).target.lengths.sum()) for n in range(crops.epochs.size))
    assert int(counts(last).sum()) == frames >= int(store.frames_of("semantic").sum())
    assert told[-1] == ("stages.semantic", crops.epochs.size, crops.epochs.size)
    assert train_part(space, "stages.semantic") == last


@pytest.mark.parametrize("kind", [torch.int64, torch.float32])
def test_counts_that_differ_between_ranks_are_refused_in_any_type(
    monkeypatch: pytest.MonkeyPatch, kind: torch.dtype
) -> None:
    def holding(number: float) -> StageLM:
        model = Counts(CountOptions(), TINY_STAGES["first"])
        model.counts = torch.full_like(model.counts, number, dtype=kind)
        return model

    def reduce(own: Tensor, how: Any) -> None:  # with the one other rank
        least = how == distributed.ReduceOp.MIN
        sent.append(own.clone())
        own.copy_((torch.minimum if least else torch.maximum)(own, sent[0]))

    sent: list[Tensor] = []  # first by the other rank
    monkeypatch.setattr("segue.training.counts.ranks", lambda: Ranks(0, 2))
    monkeypatch.setattr(distributed, "all_reduce", reduce)
    check_equal(holding(3), "part")
    with pytest.raises(TrainingError, match="part: buffer counts differs between ranks: training_"):
        check_equal(holding(4), "part")
    if kind.is_floating_point:
        with pytest.warns(UserWarning, match="counts differs between ranks, the first rank's is"):
            check_equal(holding(3.5), "part")


def test_a_stage_model_whose_loss_is_below_0_is_named() -> None:
    guard = Guard(Counts(CountOptions(), TINY_STAGES["first"]))
    assert guard.watch(1, {"loss": -0.001}) is None  # 0, rounded in half precision
    with pytest.raises(PluginError, match=r"loss returned -1e\+09, which is below 0"):
        guard.watch(2, {"loss": -1e9})
