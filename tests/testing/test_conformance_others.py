"""Each check of metrics, detectors and domains passes a good one and catches a broken one."""

from __future__ import annotations

import math
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from tests.broken import after, broken
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


class Levels(ContinuationMetric):
    def measure(self, records: Sequence[Continuation]) -> Measured:
        levels = torch.stack([r.continuation.abs().mean() for r in records]).double()
        rows = [{"level": float(level), "truth": self.truth(r)} for level, r in zip(levels, records, strict=True)]  # noqa: E501  # fmt: skip
        return Measured(rows, {"all": lambda weights: float(weights @ levels / weights.sum())})

    def truth(self, record: Continuation) -> float:
        return float(record.truth.abs().mean()) if record.truth.numel() else math.nan


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


def measuring(change: Callable[..., float], **more: Any) -> type[Any]:
    """Return a metric whose figure is ``change(sound metric, reference, audio, sample rate)``."""
    return broken(Distance, __call__=lambda right, self, *rest: change(right, *rest), **more)


def measured(change: Callable[[Measured], Measured]) -> type[Any]:
    """Return a metric of continuations with other figures."""
    return broken(Levels, measure=lambda right, self, records: change(right(records)))


def heard(change: Callable[..., Tensor]) -> type[Any]:
    """Return a detector whose logits are ``change(sound logits, wave, lengths)``."""
    return broken(Tilt, logits=lambda right, self, wave, lengths: change(right, wave, lengths))


def counting(self: Any, *_: object) -> None:
    self.calls += 1


def panic(*_: object) -> None:
    """Raise as compiled code of Rust does."""
    raise BaseException("panic")


def refuse_ten_seconds(self: Any, wave: Tensor, lengths: Tensor) -> None:
    if wave.shape[1] > 10 * self.config.sample_rate:
        raise RuntimeError("too long")


def forgets_a_part(right: Any, self: Any, config: DetectorOptions) -> None:
    right(config)
    self.offset = torch.randn(3)


def set_double(*_: object) -> None:
    torch.set_default_dtype(torch.float64)


#: Kind, check, what it says, and what it says it of.
BROKEN: list[tuple[Kind, str, str, Any]] = [
    ("metric", "attributes_describe_it", "unit is None", broken(Distance, unit=None)),
    ("metric", "returns_a_number", "returned a Tensor, not a number",
     measuring(lambda right, *rest: torch.tensor(right(*rest)))),
    ("metric", "returns_a_number", "reference is written to",
     measuring(lambda right, reference, *rest: right(reference.mul_(0.5), *rest))),
    ("metric", "returns_a_number", "KeyError: 24000",
     measuring(lambda right, reference, audio, rate: {16_000: 1.0}[rate])),
    ("metric", "damage_is_no_improvement", "but higher_is_better = True",
     broken(Distance, higher_is_better=True)),
    ("metric", "silence_has_the_worst_figure", "the figure NaN",
     measuring(lambda right, reference, audio, rate: (
         right(reference, audio, rate) if audio.any() else math.nan))),
    ("metric", "silence_has_the_worst_figure", "silence has 1",
     measuring(lambda right, reference, audio, rate: float(not audio.any()),
               higher_is_better=True)),
    ("metric", "takes_any_reference", "ZeroDivisionError",
     measuring(lambda right, reference, *rest: (
         right(reference, *rest) / float(reference.abs().max())))),
    ("metric", "is_deterministic", "the next time",
     broken(Distance, calls=0, __call__=lambda right, self, *rest: (
         counting(self) or right(*rest) + self.calls))),
    ("metric", "leaves_the_process_alone", "Python's random state",
     broken(Distance, __call__=after(lambda *_: random.seed(0)))),
    ("metric", "leaves_the_process_alone", "default dtype",
     broken(Distance, __init__=after(set_double))),
    ("metric", "returns_a_number", r"it called os\._exit\(0\)",
     broken(Distance, __call__=after(lambda *_: os._exit(0)))),
    ("metric", "returns_a_number", "BaseException: panic",
     broken(Distance, __call__=after(panic))),
    ("continuation_metric", "attributes_describe_it", "not a tuple",
     broken(Levels, domains="speech")),
    ("continuation_metric", "gives_a_row_per_record", "3 rows for 4 records",
     measured(lambda found: Measured(found.rows[1:]))),
    ("continuation_metric", "gives_a_row_per_record", "RuntimeError|IndexError",
     broken(Levels, truth=lambda right, self, record: float(record.truth.abs().max()))),
    ("continuation_metric", "rows_follow_their_records", "in another order",
     measured(lambda found: Measured(sorted(found.rows, key=lambda row: row["level"])))),
    ("continuation_metric", "figures_of_the_set_take_weights", "returned a Tensor",
     measured(lambda found: replace(found, overall={"all": lambda weights: weights.sum()}))),
    ("continuation_metric", "takes_few_and_silent_records", "IndexError",
     broken(Levels, measure=after(lambda self, records: records[1]))),
    ("continuation_metric", "is_deterministic", "the next time",
     broken(Levels, truth=lambda right, self, record: float(torch.rand(())))),
    ("continuation_metric", "leaves_the_process_alone", "grad mode",
     broken(Levels, measure=after(lambda *_: torch.set_grad_enabled(False)))),
    ("detector", "scores_are_probabilities", "a probability is|sum of a row",
     broken(Tilt, score=lambda right, self, *rest: self.logits(*rest))),
    ("detector", "scores_are_probabilities", "too long",
     broken(Tilt, score=after(refuse_ten_seconds))),
    ("detector", "scored_batch_equals_rows", "in a batch",
     heard(lambda right, wave, lengths: right(wave, torch.full_like(lengths, wave.shape[1])))),
    ("detector", "level_does_not_matter", "a fifth as loud",
     heard(lambda right, wave, lengths: (
         right(wave, lengths) + wave.abs().mean(dim=1)[:, None] * torch.arange(3)))),
    ("detector", "is_deterministic", "the next time",
     heard(lambda right, *rest: right(*rest) + torch.rand(3))),
    ("detector", "training_step_can_be_learnt_from", "reaches no parameter",
     broken(Tilt, origin_loss=lambda right, self, *_: 0 * self.readings.weight.sum())),
    ("detector", "state_round_trip", "after loading",
     broken(Tilt, __init__=forgets_a_part,
            logits=lambda right, self, *rest: right(*rest) + self.offset)),
    ("detector", "respects_the_device", "scores are on meta",
     broken(Tilt, score=lambda right, self, *rest: right(*rest).to("meta"))),
    ("detector", "leaves_the_process_alone", "random state",
     broken(Tilt, score=after(lambda *_: torch.manual_seed(0)))),
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


@pytest.mark.parametrize(("kind", "name", "problem", "component"), BROKEN)
def test_a_broken_one_is_caught(kind: Kind, name: str, problem: str, component: Any) -> None:
    checks = {check.name: check for check in checks_for(kind)}
    result = run_check(checks[name], subject_of(kind, component))
    assert result.outcome == "failed"
    assert re.search(problem, result.message), result.message


@pytest.mark.parametrize(("name", "changes", "problem"), BROKEN_DOMAINS)
def test_a_broken_domain_is_caught(
    name: str, changes: dict[str, Any], problem: str, tmp_path: Path, plugin_host: PluginHost
) -> None:
    if "prompt" in changes:
        changes = {"prompt": tmp_path / "silence.wav"}
        soundfile.write(changes["prompt"], torch.zeros(800).numpy(), 8000)
    domain: Domain = replace(DOMAIN, **changes)
    check = next(check for check in checks_for("domain") if check.name == name)
    result = run_check(check, Subject("domain", lambda: domain, label="x", host=plugin_host))
    assert result.outcome == "failed" and problem in result.message, result.message


def test_what_one_check_has_set_is_seen_all_the_same() -> None:
    """The check of the process comes first, as all checks run in one."""
    subject = subject_of("metric", broken(Distance, __call__=after(set_double)))
    results = {check.name: run_check(check, subject) for check in checks_for("metric")}
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
