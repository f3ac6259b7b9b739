"""Test the machinery of conformance checks: running, expected failures, subjects, audio."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from segue.core.errors import ConfigError, PluginError
from segue.core.hookspecs import hookimpl
from segue.core.interfaces import SemanticTokenizer, Tokens, WaveBatch
from segue.core.options import TokenizerOptions
from segue.core.plugins import PluginHost
from segue.core.records import KINDS, PluginRecord
from segue.core.spec import TokenSpec
from segue.testing import (
    Check,
    ConformanceError,
    NotApplicable,
    Subject,
    checks_for,
    distribution,
    fit_on_synthetic,
    parametrize_with_checks,
    ragged_audio,
    run_check,
    suite,
)

SMALL = {"width": 16, "depth": 1, "heads": 2}


class ThresholdOptions(TokenizerOptions):
    def spec(self) -> TokenSpec:
        return TokenSpec(8000, Fraction(25), 1, 2)


class Threshold(SemanticTokenizer):
    """Louder than the mean or not; the mean is fitted."""

    needs_training, needs_fitting = False, True

    def __init__(self, config: ThresholdOptions) -> None:
        super().__init__(config)
        self.register_buffer("mean", torch.full((), torch.nan))

    def fit(self, batches: Iterable[WaveBatch]) -> Mapping[str, float]:
        self.mean = torch.stack([batch.wave.abs().mean() for batch in batches]).mean()
        return {"mean": float(self.mean)}

    def encode(self, wave: Tensor, lengths: Tensor) -> Tokens:
        raise NotImplementedError


def subject() -> Subject:
    return Subject("semantic_tokenizer", Threshold, ThresholdOptions())


def check_with(error: Exception | None) -> Check:
    def function(_: Subject) -> None:
        if error is not None:
            raise error

    return Check("sample", "codec", function, "A promise.")


@pytest.mark.parametrize(
    ("error", "outcome", "ok", "expected_outcome"),
    [
        (None, "passed", True, "passed unexpectedly"),
        (ConformanceError("wrong"), "failed", False, "failed as expected"),
        (ValueError("wrong"), "failed", False, "failed as expected"),
        (NotApplicable("no weights"), "skipped", True, "skipped"),
    ],
)
def test_run_check_reports(
    error: Exception | None, outcome: str, ok: bool, expected_outcome: str
) -> None:
    result = run_check(check_with(error), subject())
    assert (result.outcome, result.ok) == (outcome, ok)
    assert outcome in str(result)
    if isinstance(error, ValueError):
        assert result.message == "ValueError: wrong"
    expected = run_check(check_with(error), subject(), {"sample": "known"})
    assert expected.outcome == expected_outcome
    assert expected.ok == (expected_outcome in ("failed as expected", "skipped"))


def test_run_check_lets_interrupts_through() -> None:
    def interrupt(_: Subject) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_check(Check("sample", "codec", interrupt, "A promise."), subject())


def test_checks_leave_the_random_state_alone() -> None:
    def draw(_: Subject) -> None:
        torch.rand(5)

    torch.manual_seed(3)
    before = torch.get_rng_state()
    Check("sample", "codec", draw, "A promise.")(subject())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_checks_have_unique_names_and_descriptions(kind: str) -> None:
    checks = checks_for(kind)  # type: ignore[arg-type]
    names = [check.name for check in checks]
    assert len(set(names)) == len(names)
    assert checks and all(check.description and check.kind == kind for check in checks)


def test_expected_failures_become_strict_xfails() -> None:
    decorate = parametrize_with_checks([subject()], {"encodes_silence": "it is loud"})

    @decorate
    def test(subject: Subject, check: Check) -> None: ...

    (mark,) = test.pytestmark  # type: ignore[attr-defined]
    parameters = mark.args[1]
    assert len(parameters) == len(checks_for("semantic_tokenizer"))
    (marked,) = (parameter for parameter in parameters if parameter.marks)
    assert marked.values[1].name == "encodes_silence"
    assert marked.marks[0].kwargs == {"reason": "it is loud", "strict": True}
    assert marked.id == "Threshold-encodes_silence"


def test_expected_failures_must_name_checks() -> None:
    with pytest.raises(ValueError, match="no_such_check"):
        parametrize_with_checks([subject()], {"no_such_check": "typo"})


def test_a_subject_is_fitted_once_and_copied() -> None:
    fitted = subject()
    one, other = fitted.create(), fitted.create()
    assert one is not other
    assert torch.equal(one.get_buffer("mean"), other.get_buffer("mean"))
    assert one.get_buffer("mean").isfinite()
    assert fitted.blank().get_buffer("mean").isnan()


def test_a_subject_can_be_prepared_another_way() -> None:
    def prepare(component: object) -> None:
        assert isinstance(component, Threshold)
        component.mean.fill_(0.5)

    prepared = Subject("semantic_tokenizer", Threshold, ThresholdOptions(), prepare=prepare)
    assert float(prepared.create().get_buffer("mean")) == 0.5


def test_a_registered_name_is_built_through_the_host(plugin_host: PluginHost) -> None:
    named = Subject("stage_lm", "flat_transformer.v1", SMALL, host=plugin_host)
    assert type(named.create()).__name__ == "FlatTransformer"
    assert str(named) == "flat_transformer.v1-second"


def test_synthetic_audio_is_ragged_seeded_and_audible() -> None:
    batch = ragged_audio([8000, 5000, 1], 8000, seed=4)
    again = ragged_audio([8000, 5000, 1], 8000, seed=4)
    other = ragged_audio([8000, 5000, 1], 8000, seed=5)
    assert torch.equal(batch.wave, again.wave)
    assert not torch.equal(batch.wave, other.wave)
    assert batch.lengths.tolist() == [8000, 5000, 1]
    assert not batch.wave[1, 5000:].any()
    assert batch.wave.abs().max() <= 1
    assert batch.wave[:2].abs().amax(dim=1).min() > 0.5


def test_fitting_audio_holds_frames_enough() -> None:
    class Counter(Threshold):
        samples = 0

        def fit(self, batches: Iterable[WaveBatch]) -> Mapping[str, float]:
            return {"samples": float(sum(int(batch.lengths.sum()) for batch in batches))}

    assert fit_on_synthetic(Counter(ThresholdOptions()))["samples"] > 30 * 8000


def test_the_command_checks_a_stage_model_with_each_stage(
    plugin_host: PluginHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {"loss_is_finite", "given_frames_matter"}
    monkeypatch.setattr(
        suite, "checks_for", lambda kind: [c for c in checks_for(kind) if c.name in few]
    )
    results = distribution.check_component(plugin_host, "flat_transformer.v1", SMALL)
    assert {(result.name, bool(result.problem), bool(result.skipped)) for result in results} == {
        ("first stage: loss_is_finite", False, False),
        ("first stage: given_frames_matter", False, True),
        ("second stage: loss_is_finite", False, False),
        ("second stage: given_frames_matter", False, False),
        ("third stage: loss_is_finite", False, False),
        ("third stage: given_frames_matter", False, False),
    }


def test_the_command_refuses_unknown_names_and_options(plugin_host: PluginHost) -> None:
    with pytest.raises(PluginError, match=r"did you mean 'flat_transformer\.v1'"):
        distribution.check_named(plugin_host, "flat_transformr.v1", {}, 1)
    with pytest.raises(ConfigError, match=r"options\.widht: unknown key"):
        distribution.check_named(plugin_host, "flat_transformer.v1", {"widht": 3}, 1)
    with pytest.raises(PluginError, match=r"^centroid\.v1: there is no component and no distrib"):
        distribution.check_named(plugin_host, "centroid.v1", {}, 1)


def test_the_command_names_the_check_in_which_compiled_code_ends_the_process(
    plugin_host: PluginHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "segue_leaves.py").write_text(
        "import ctypes\nfrom segue.plugins.metrics.quality import SiSdr\n"
        "class Leaves(SiSdr):\n"
        "    def __call__(self, *audio):\n        ctypes.CDLL(None)._exit(0)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    record = PluginRecord("metric", "leaves.v1", "segue_leaves:Leaves", api_version=1)
    plugin_host.register(SimpleNamespace(segue_register=hookimpl(lambda: [record])))
    *_, last = distribution.check_named(plugin_host, "leaves.v1", {}, 1)
    assert last.name in {check.name for check in checks_for("metric")}
    assert last.problem == "ends the process, with exit code 0; no check follows"


def test_the_command_checks_a_metric_of_a_plugin(
    plugin_host: PluginHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "centroid.v1"
    target = "segue.plugins.metrics.quality:SiSdr"
    record = PluginRecord("metric", name, target, api_version=1)
    plugin_host.register(SimpleNamespace(segue_register=hookimpl(lambda: [record])))
    results = distribution.check_named(plugin_host, name, {}, 1)
    assert [result.name for result in results] == [c.name for c in checks_for("metric")]
    assert not [result for result in results if result.problem]
    assert sum(not result.skipped for result in results) >= 7
