"""Continuations of recordings, held against how they really go on by any metrics."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import soundfile
import torch

from segue.core.config import PromptConfig
from segue.core.errors import DataError, PluginError
from segue.core.metrics import Continuation, ContinuationMetric, Measured
from segue.core.plugins import PluginHost
from segue.core.records import PluginRecord
from segue.data.recordings import Recording
from segue.evaluation.continuations import evaluate_continuations, measured

RATE = 16_000


class Result:
    def __init__(self, wave: torch.Tensor, prompt: int) -> None:
        self.wave, self.prompt_samples = wave, torch.tensor([prompt])

    sample_rate = RATE

    def row(self) -> torch.Tensor:
        return self.wave

    def continuation(self) -> torch.Tensor:
        return self.wave[int(self.prompt_samples[0]) :]


class FakePipeline:
    """Its continuation is the prompt's end, halved."""

    sample_rate = RATE

    def __init__(self) -> None:
        self.config = SimpleNamespace(prompt=PromptConfig(min_seconds=0.5, max_seconds=2.0))
        self.prompts: list[int] = []

    def continue_(self, wave: torch.Tensor, rate: int, *, seconds: float, seed: int) -> Result:
        self.prompts.append(wave.shape[0])
        return Result(torch.cat([wave, 0.5 * wave[-round(seconds * rate) :]]), wave.shape[0])


class Peaks(ContinuationMetric):
    """The peaks of all there is; of the set, the largest of a continuation."""

    def measure(self, records: Sequence[Continuation]) -> Measured:
        self.records = list(records)
        rows = [
            {
                "prompt": float(r.prompt.abs().max()),
                "made": float(r.continuation.abs().max()),
                "truth": float(r.truth.abs().max()) if r.truth.numel() else math.nan,
            }
            for r in records
        ]
        made = torch.tensor([row["made"] for row in rows], dtype=torch.float64)
        return Measured(rows, {"weighted": lambda weights: float(weights @ made / weights.sum())})


@pytest.fixture
def recordings(tmp_path: Path) -> list[Recording]:
    """Two that can be used, the second without a rest, and four that cannot."""
    time = torch.arange(3 * RATE) / RATE
    tone = 0.5 * torch.sin(2 * math.pi * 100 * time)
    waves = {"good": torch.cat([tone[:24_000], 0.8 * tone[24_000:]]), "other": 0.2 * tone[:RATE]}
    waves |= {"short": tone[:3000], "nan": torch.full((RATE,), math.nan)}
    for name, wave in waves.items():
        soundfile.write(tmp_path / f"{name}.wav", wave.numpy(), RATE, subtype="FLOAT")
    (tmp_path / "text.wav").write_text("no audio")
    names = ["good", "short", "nan", "text", "missing", "other"]
    return [Recording(str(tmp_path / f"{name}.wav"), 1.0, name, "valid") for name in names]


def evaluated(recordings: list[Recording], metric: ContinuationMetric) -> dict[str, Any]:
    return evaluate_continuations(
        FakePipeline(),  # type: ignore[arg-type]
        recordings,
        {"peaks": metric},
        prompt_seconds=1.5,
        seconds=1.0,
        seed=0,
    )


def test_what_can_be_read_is_continued_and_measured(recordings: list[Recording]) -> None:
    metric = Peaks()
    found = evaluated(recordings, metric)
    assert (found["items"], found["groups"], found["unusable"]) == (2, 2, 4)
    figures = found["metrics"]["peaks"]
    assert figures["prompt"]["mean"] == pytest.approx(0.3, abs=1e-3)
    assert figures["made"]["mean"] == pytest.approx(0.15, abs=1e-3)
    assert figures["truth"]["mean"] == pytest.approx(0.4, abs=1e-3)
    assert (figures["truth"]["count"], figures["truth"]["left_out"]) == (1, 1)
    assert figures["weighted"]["mean"] == pytest.approx(0.15, abs=1e-3)
    assert figures["weighted"]["low"] < 0.1 and figures["weighted"]["lowest"] is None
    json.dumps(found, allow_nan=False)
    first, second = metric.records
    assert [len(one) for one in (first.prompt, first.continuation, first.truth)] == [
        24_000, 16_000, 16_000,
    ]  # fmt: skip
    assert (first.group, second.group, len(second.truth)) == ("good", "other", 0)


def test_no_usable_recording_is_an_error(recordings: list[Recording]) -> None:
    with pytest.raises(DataError, match="recordings: none can be used; check the data"):
        evaluated(recordings[1:5], Peaks())


def record(group: str = "a") -> Continuation:
    wave = torch.zeros(RATE)
    return Continuation(wave, wave, wave, RATE, group)


def fails(*_: object) -> float:
    raise ValueError("no figure")


ROWS = [{"x": 1.0}, {"x": 1.0}]


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (Measured(ROWS[:1]), "measure returned 1 rows for 2 records"),
        (Measured([*ROWS, *ROWS]), "measure returned 4 rows for 2 records"),
        (Measured([{"x": 1.0}, {"y": 1.0}]), "rows of unlike names"),
        (Measured([{"x": 1.0}, {"x": "high"}]), "returned a str, not a number"),  # type: ignore[dict-item]
        ({"x": 1.0}, "measure returned a dict, not Measured"),
        (Measured(ROWS, {"all": fails}), "ValueError: no figure"),
        (None, "ValueError: no figure"),
    ],
)
def test_a_metric_that_breaks_its_contract_takes_no_other_figures_with_it(
    result: Measured | None, reason: str
) -> None:
    class Broken(ContinuationMetric):
        def measure(self, records: Sequence[Continuation]) -> Measured:
            return result or fails()  # type: ignore[return-value]

    failed: dict[str, str] = {}
    metrics = {"broken": Broken(), "peaks": Peaks()}
    found = measured([record(), record()], metrics, failed)
    assert set(found) == {"peaks"} and set(failed) == {"broken"}
    assert reason in failed["broken"]


def test_one_group_has_no_interval() -> None:
    found = measured([record(), record()], {"peaks": Peaks()}, {})["peaks"]
    assert (found["weighted"]["low"], found["made"]["low"]) == (None, None)
    assert found["weighted"]["mean"] == 0 and found["weighted"]["groups"] == 1


def test_plugins_add_metrics_of_continuations() -> None:
    from segue.core.hookspecs import hookimpl

    class Plugin:
        @hookimpl
        def segue_register_continuation_metrics(self) -> list[PluginRecord]:
            health = "segue.plugins.metrics.health:Health"
            pair = "segue.plugins.metrics.quality:SiSdr"
            return [
                PluginRecord("continuation_metric", "mine.v1", health),
                PluginRecord("continuation_metric", "pair.v1", pair),
            ]

    host = PluginHost()
    host.register(Plugin())
    assert isinstance(
        host.create("continuation_metric", "mine.v1", {}, place="x"), ContinuationMetric
    )
    with pytest.raises(PluginError, match=r"subclass of segue\.core\.metrics"):
        host.create("continuation_metric", "pair.v1", {}, place="x")
