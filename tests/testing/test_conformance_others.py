"""Each check of metrics, detectors and domains passes a good one and catches a broken one."""

from __future__ import annotations

import math
import os
import random
import re
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from torch import Tensor, nn

from segue.core.domain import Domain
from segue.core.interfaces import Detector, Metric, WaveBatch
from segue.core.metrics import Continuation, ContinuationMetric, Measured
from segue.core.options import DetectorOptions
from segue.core.plugins import PluginHost
from segue.core.records import Kind
from segue.plugins.domains.speech import DOMAIN
from segue.testing import Check, Subject, checks_for, parametrize_with_checks, run_check
from segue.testing.compare import a_day_later


class Distance(Metric):
    higher_is_better = False

    def __call__(self, reference: Tensor, audio: Tensor, sample_rate: int) -> float:
        return float((reference - audio).abs().mean())


class HasAWrongUnit(Distance):
    unit = None  # type: ignore[assignment]


class ReturnsATensor(Distance):
    def __call__(self, *arguments: Any) -> Any:
        return torch.tensor(super().__call__(*arguments))


class WritesToTheReference(Distance):
    def __call__(self, reference: Tensor, audio: Tensor, sample_rate: int) -> float:
        return super().__call__(reference.mul_(0.5), audio, sample_rate)


class KnowsOneRate(Distance):
    def __call__(self, reference: Tensor, audio: Tensor, sample_rate: int) -> float:
        return {16_000: 1.0}[sample_rate]


class PointsTheWrongWay(Distance):
    higher_is_better = True


class DoesNotMeasureSilence(Distance):
    def __call__(self, reference: Tensor, audio: Tensor, sample_rate: int) -> float:
        return super().__call__(reference, audio, sample_rate) if audio.any() else math.nan


class LikesSilence(Distance):
    higher_is_better = True

    def __call__(self, reference: Tensor, audio: Tensor, sample_rate: int) -> float:
        return float(not audio.any())


class DividesByTheReference(Distance):
    def __call__(self, reference: Tensor, audio: Tensor, sample_rate: int) -> float:
        return super().__call__(reference, audio, sample_rate) / float(reference.abs().max())


class CountsCalls(Distance):
    calls = 0

    def __call__(self, *arguments: Any) -> float:
        self.calls += 1
        return super().__call__(*arguments) + self.calls


class Reseeds(Distance):
    def __call__(self, *arguments: Any) -> float:
        random.seed(0)
        return super().__call__(*arguments)


class SetsTheDtypeOnce(Distance):
    """Set what other checks would leave set, so that it seems to change nothing."""

    def __call__(self, reference: Tensor, audio: Tensor, sample_rate: int) -> float:
        torch.set_default_dtype(torch.float64)
        return super().__call__(reference, audio, sample_rate)


class SetsTheDtypeWhenBuilt(Distance):
    def __init__(self) -> None:
        torch.set_default_dtype(torch.float64)


class EndsTheProcess(Distance):
    def __call__(self, reference: Tensor, audio: Tensor, sample_rate: int) -> float:
        os._exit(0)


class Panics(Distance):
    """Raise as compiled code of Rust does."""

    def __call__(self, reference: Tensor, audio: Tensor, sample_rate: int) -> float:
        raise BaseException("panic")


class Levels(ContinuationMetric):
    def measure(self, records: Sequence[Continuation]) -> Measured:
        levels = torch.stack([r.continuation.abs().mean() for r in records]).double()
        rows = [{"level": float(level), "truth": self.truth(r)} for level, r in zip(levels, records, strict=True)]  # noqa: E501  # fmt: skip
        return Measured(rows, {"all": lambda weights: float(weights @ levels / weights.sum())})

    def truth(self, record: Continuation) -> float:
        return float(record.truth.abs().mean()) if record.truth.numel() else math.nan


class NamesOneDomain(Levels):
    domains = "speech"  # type: ignore[assignment]


class SkipsARecord(Levels):
    def measure(self, records: Sequence[Continuation]) -> Measured:
        return Measured(super().measure(records).rows[1:])


class NeedsATruth(Levels):
    def truth(self, record: Continuation) -> float:
        return float(record.truth.abs().max())


class SortsItsRows(Levels):
    def measure(self, records: Sequence[Continuation]) -> Measured:
        rows = super().measure(records).rows
        return Measured(sorted(rows, key=lambda row: row["level"]))


class ReturnsTensorsOfTheSet(Levels):
    def measure(self, records: Sequence[Continuation]) -> Measured:
        return replace(super().measure(records), overall={"all": lambda weights: weights.sum()})


class NeedsTwoRecords(Levels):
    def measure(self, records: Sequence[Continuation]) -> Measured:
        assert records[1]
        return super().measure(records)


class DrawsAtRandom(Levels):
    def truth(self, record: Continuation) -> float:
        return float(torch.rand(()))


class SwitchesGradOff(Levels):
    def measure(self, records: Sequence[Continuation]) -> Measured:
        torch.set_grad_enabled(False)
        return super().measure(records)


class Tilt(Detector):
    """Three linear readings of the audio's spectrum, whatever its level."""

    def __init__(self, config: DetectorOptions) -> None:
        super().__init__(config)
        self.readings = nn.Linear(2, 3)

    def logits(self, wave: Tensor, lengths: Tensor) -> Tensor:
        inside = torch.arange(wave.shape[1]) < lengths[:, None]
        wave = wave * inside
        energy = wave.square().sum(dim=1).clamp_min(1e-9)
        change = wave.diff(dim=1).square()
        change = (change * inside[:, 1:]).sum(dim=1)
        reading: Tensor = self.readings(torch.stack([change / energy, torch.ones(len(wave))], 1))
        return reading

    def score(self, wave: Tensor, lengths: Tensor) -> Tensor:
        return self.logits(wave, lengths).softmax(dim=1)

    def origin_loss(self, batch: WaveBatch, origins: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.logits(batch.wave, batch.lengths), origins)


class ScoresLogits(Tilt):
    def score(self, wave: Tensor, lengths: Tensor) -> Tensor:
        return self.logits(wave, lengths)


class HearsBeyondTheEnd(Tilt):
    def logits(self, wave: Tensor, lengths: Tensor) -> Tensor:
        return super().logits(wave, torch.full_like(lengths, wave.shape[1]))


class HearsTheLevel(Tilt):
    def logits(self, wave: Tensor, lengths: Tensor) -> Tensor:
        return super().logits(wave, lengths) + wave.abs().mean(dim=1)[:, None] * torch.arange(3)


class ScoresAtRandom(Tilt):
    def logits(self, wave: Tensor, lengths: Tensor) -> Tensor:
        return super().logits(wave, lengths) + torch.rand(3)


class LearnsNothing(Tilt):
    def origin_loss(self, batch: WaveBatch, origins: Tensor) -> Tensor:
        return 0 * self.readings.weight.sum()


class ForgetsAPart(Tilt):
    def __init__(self, config: DetectorOptions) -> None:
        super().__init__(config)
        self.offset = torch.randn(3)

    def logits(self, wave: Tensor, lengths: Tensor) -> Tensor:
        return super().logits(wave, lengths) + self.offset


class ScoresElsewhere(Tilt):
    def score(self, wave: Tensor, lengths: Tensor) -> Tensor:
        return super().score(wave, lengths).to("meta")


class TakesTenSeconds(Tilt):
    def score(self, wave: Tensor, lengths: Tensor) -> Tensor:
        if wave.shape[1] > 10 * self.config.sample_rate:
            raise RuntimeError("too long")
        return super().score(wave, lengths)


class ReseedsTorch(Tilt):
    def score(self, wave: Tensor, lengths: Tensor) -> Tensor:
        torch.manual_seed(0)
        return super().score(wave, lengths)


Broken = tuple[Kind, str, Any, str]
BROKEN: list[Broken] = [
    ("metric", "attributes_describe_it", HasAWrongUnit, "unit is None"),
    ("metric", "returns_a_number", ReturnsATensor, "returned a Tensor, not a number"),
    ("metric", "returns_a_number", WritesToTheReference, "reference is written to"),
    ("metric", "returns_a_number", KnowsOneRate, "KeyError: 24000"),
    ("metric", "damage_is_no_improvement", PointsTheWrongWay, "but higher_is_better = True"),
    ("metric", "silence_has_the_worst_figure", DoesNotMeasureSilence, "the figure NaN"),
    ("metric", "silence_has_the_worst_figure", LikesSilence, "silence has 1"),
    ("metric", "takes_any_reference", DividesByTheReference, "ZeroDivisionError"),
    ("metric", "is_deterministic", CountsCalls, "the next time"),
    ("metric", "leaves_the_process_alone", Reseeds, "Python's random state"),
    ("metric", "leaves_the_process_alone", SetsTheDtypeWhenBuilt, "default dtype"),
    ("metric", "returns_a_number", EndsTheProcess, r"it called os\._exit\(0\)"),
    ("metric", "returns_a_number", Panics, "BaseException: panic"),
    ("continuation_metric", "attributes_describe_it", NamesOneDomain, "not a tuple"),
    ("continuation_metric", "gives_a_row_per_record", SkipsARecord, "3 rows for 4 records"),
    ("continuation_metric", "gives_a_row_per_record", NeedsATruth, "RuntimeError|IndexError"),
    ("continuation_metric", "rows_follow_their_records", SortsItsRows, "in another order"),
    (
        "continuation_metric", "figures_of_the_set_take_weights", ReturnsTensorsOfTheSet,
        "returned a Tensor",
    ),
    ("continuation_metric", "takes_few_and_silent_records", NeedsTwoRecords, "IndexError"),
    ("continuation_metric", "is_deterministic", DrawsAtRandom, "the next time"),
    ("continuation_metric", "leaves_the_process_alone", SwitchesGradOff, "grad mode"),
    ("detector", "scores_are_probabilities", ScoresLogits, "a probability is|sum of a row"),
    ("detector", "scores_are_probabilities", TakesTenSeconds, "too long"),
    ("detector", "scored_batch_equals_rows", HearsBeyondTheEnd, "in a batch"),
    ("detector", "level_does_not_matter", HearsTheLevel, "a fifth as loud"),
    ("detector", "is_deterministic", ScoresAtRandom, "the next time"),
    ("detector", "training_step_can_be_learnt_from", LearnsNothing, "reaches no parameter"),
    ("detector", "state_round_trip", ForgetsAPart, "after loading"),
    ("detector", "respects_the_device", ScoresElsewhere, "scores are on meta"),
    ("detector", "leaves_the_process_alone", ReseedsTorch, "random state"),
]  # fmt: skip
BROKEN_DOMAINS = [
    ("is_called_what_it_is_registered_as", {"name": "two words"}, "not one plain word"),
    ("every_config_assembles", {"directory": Path(__file__).parent}, "neither config.yaml"),
    ("recipe_can_be_called", {"recipe": "math:sqrt"}, "does not take"),
    ("prompt_is_audio", {"prompt": "silence.wav"}, "holds no sound"),
    ("findings_can_be_imported", {"findings": "no_such_module:X"}, "ModuleNotFoundError"),
]
KINDS: tuple[Kind, ...] = ("metric", "continuation_metric", "detector")
OF_OPTIONS = {check.name for check in checks_for("metric") if "options" in check.name}


def subject_of(kind: Kind, factory: Any) -> Subject:
    return Subject(kind, factory, DetectorOptions() if kind == "detector" else {})


@pytest.fixture(autouse=True)
def dtype_is_set_back() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)


GOOD = [subject_of("metric", Distance), subject_of("continuation_metric", Levels)]
GOOD += [subject_of("detector", Tilt)]


@parametrize_with_checks(GOOD)
def test_a_good_one_passes(subject: Subject, check: Check) -> None:
    check(subject)


@pytest.mark.parametrize("check", checks_for("domain"), ids=str)
def test_a_shipped_domain_passes(check: Check, plugin_host: PluginHost) -> None:
    check(Subject("domain", "speech", host=plugin_host))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("metric", "log_mel.v1"),
        ("metric", "si_sdr.v1"),
        ("continuation_metric", "health.v1"),
        ("continuation_metric", "chroma.v1"),
        ("continuation_metric", "onsets.v1"),
        ("continuation_metric", "frechet.v1"),
        ("detector", "spectral_detector.v1"),
    ],
)
def test_shipped_ones_pass(kind: Kind, name: str, plugin_host: PluginHost) -> None:
    subject = Subject(kind, name, host=plugin_host)
    results = [run_check(check, subject) for check in checks_for(kind)]
    assert [str(result) for result in results if not result.ok] == []


@pytest.mark.parametrize(("kind", "name", "broken", "problem"), BROKEN)
def test_a_broken_one_is_caught(kind: Kind, name: str, broken: Any, problem: str) -> None:
    checks = {check.name: check for check in checks_for(kind)}
    result = run_check(checks[name], subject_of(kind, broken))
    assert result.outcome == "failed"
    assert re.search(problem, result.message), result.message


@pytest.mark.parametrize(("name", "changes", "problem"), BROKEN_DOMAINS)
def test_a_broken_domain_is_caught(
    name: str, changes: dict[str, Any], problem: str, tmp_path: Path, plugin_host: PluginHost
) -> None:
    if "prompt" in changes:
        changes = {"prompt": tmp_path / "silence.wav"}
        soundfile.write(changes["prompt"], torch.zeros(800).numpy(), 8000)
    broken: Domain = replace(DOMAIN, **changes)
    check = next(check for check in checks_for("domain") if check.name == name)
    result = run_check(check, Subject("domain", lambda: broken, label="x", host=plugin_host))
    assert result.outcome == "failed" and problem in result.message, result.message


def test_what_one_check_has_set_is_seen_all_the_same() -> None:
    """The check of the process comes first, as all checks run in one."""
    checks = checks_for("metric")
    results = {c.name: run_check(c, subject_of("metric", SetsTheDtypeOnce)) for c in checks}
    assert "default dtype" in results["leaves_the_process_alone"].message


def test_every_check_can_fail() -> None:
    for kind in KINDS:
        named = {name for each, name, *_ in BROKEN if each == kind}
        assert named | OF_OPTIONS == {check.name for check in checks_for(kind)}
    domains = {name for name, *_ in BROKEN_DOMAINS} | {"imports_no_torch"}
    assert domains == {check.name for check in checks_for("domain")}


@pytest.mark.parametrize("kind", KINDS)
def test_one_kind_is_not_taken_for_another(kind: Kind) -> None:
    wrong = Subject(kind, lambda *_: Levels() if kind == "metric" else Distance(), label="x")
    check = next(c for c in checks_for(kind) if c.name == "leaves_the_process_alone")
    assert "is not a" in run_check(check, wrong).message


def test_only_the_thread_that_checks_has_later_clocks() -> None:
    """An event loop in another thread would otherwise sleep until tomorrow."""
    began, seen = time.monotonic(), []
    with a_day_later(object()):
        thread = threading.Thread(target=lambda: seen.append(time.monotonic()))
        thread.start()
        thread.join()
        assert time.monotonic() - began > 80_000
    assert 0 <= seen[0] - began < 60
