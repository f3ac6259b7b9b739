"""Recordings that go through a pipeline of which it is known what it changes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import soundfile
import torch

from segue.core.audio import Audio
from segue.core.config import PromptConfig
from segue.core.errors import AudioError, DataError
from segue.core.interfaces import Metric
from segue.core.metrics import Continuation, ContinuationMetric, Measured
from segue.data.recordings import Recording
from segue.evaluation.resynthesis import evaluate_resynthesis

RATE, UNIT = 8000, 400


class FakePipeline:
    """The codec halves audio, semantic tokens keep a tenth, generation adds what the seed says."""

    def __init__(self) -> None:
        self.config = SimpleNamespace(prompt=PromptConfig(min_seconds=0.2, max_seconds=1.0))
        self.audio = SimpleNamespace(prepared=self.prepared)

    def prepared(self, prompts: Sequence[Audio], *, whole_units: bool) -> list[Audio]:
        assert whole_units and len(prompts) == 1
        if prompts[0].wave.abs().max() > 5:
            raise AudioError("prompt", "is too loud", "turn it down")
        spare = prompts[0].wave.shape[0] % UNIT
        return [Audio(prompts[0].wave[spare:], prompts[0].sample_rate)]

    def acoustic_generation(self, wave: torch.Tensor, rate: int, *, seed: int) -> Any:
        return SimpleNamespace(row=lambda: torch.cat([wave + seed, wave]))

    def resynthesize(self, wave: torch.Tensor, rate: int, *, through: str) -> Any:
        return SimpleNamespace(row=lambda: {"codec": 0.5, "semantic": 0.1}[through] * wave)


class Difference(Metric):
    def __call__(self, reference: torch.Tensor, audio: torch.Tensor, sample_rate: int) -> float:
        assert len(reference) == len(audio) and sample_rate == RATE
        return float((audio - reference).abs().max())


class Peak(ContinuationMetric):
    def measure(self, records: Sequence[Continuation]) -> Measured:
        return Measured(
            [
                {
                    "peak": float(r.continuation.abs().max()),
                    "truth_peak": float(r.truth.abs().max()),
                    "peak_to_truth": 1.0,
                    "unknown": math.nan,
                }
                for r in records
            ]
        )


@pytest.fixture
def recordings(tmp_path: Path) -> list[Recording]:
    """Two that can be used, one that is too short, one that the pipeline refuses."""
    time = torch.arange(RATE + 123) / RATE
    tone = torch.sin(2 * math.pi * 100 * time)
    waves = {"a": 0.8 * tone, "b": 0.4 * tone, "short": tone[:800], "loud": 9 * tone}
    for name, wave in waves.items():
        soundfile.write(tmp_path / f"{name}.wav", wave.numpy(), RATE, subtype="FLOAT")
    return [Recording(str(tmp_path / f"{name}.wav"), 1.0, name, "valid") for name in waves]


def test_every_way_is_held_against_the_recording(recordings: list[Recording]) -> None:
    told: list[tuple[str, int, int]] = []
    found = evaluate_resynthesis(
        FakePipeline(),  # type: ignore[arg-type]
        recordings,
        ["acoustic_generation", "semantic", "codec", "recording", "foreign"],
        {"difference": Difference()},
        {"loudness": Peak()},
        seed=3,
        progress=lambda *what: told.append(what),
    )
    assert (found["items"], found["groups"], found["unusable"]) == (2, 2, 2)
    means = {
        way: [figures["difference"]["mean"], figures["loudness peak"]["mean"]]
        for way, figures in found["ways"].items()
    }
    assert means["acoustic_generation"] == pytest.approx([3.0, 3.6], abs=1e-3)
    assert means["semantic"] == pytest.approx([0.54, 0.06], abs=1e-3)
    assert means["codec"] == pytest.approx([0.3, 0.3], abs=1e-3)
    assert means["recording"] == pytest.approx([0.0, 0.6], abs=1e-3)
    assert means["foreign"] == pytest.approx([0.4, 0.6], abs=1e-3)
    # What is said of the recording itself, or of nothing, is left out.
    assert set(found["ways"]["codec"]) == {"difference", "loudness peak"}
    assert told[-1] == ("foreign", 2, 2) and len(told) == 10


def test_a_metric_that_fails_takes_no_other_figures_with_it(recordings: list[Recording]) -> None:
    class Broken(Difference, Peak):
        def __call__(self, *_: object) -> float:
            raise ValueError("no figure")

        def measure(self, records: Sequence[Continuation]) -> Measured:
            raise ValueError("no figures")

    found = evaluate_resynthesis(
        FakePipeline(),  # type: ignore[arg-type]
        recordings,
        ["codec", "recording"],
        {"difference": Difference(), "pair": Broken()},
        {"loudness": Peak(), "set": Broken()},
        seed=3,
    )
    assert [set(row) for row in found["ways"].values()] == [{"difference", "loudness peak"}] * 2
    assert {name: "ValueError" in text for name, text in found["failed"].items()} == {
        "pair": True, "set": True,
    }  # fmt: skip


def test_no_usable_recording_is_an_error(recordings: list[Recording]) -> None:
    with pytest.raises(DataError, match="recordings: none can be used"):
        evaluate_resynthesis(
            FakePipeline(),  # type: ignore[arg-type]
            recordings[2:],
            ["codec"],
            {},
            {},
            seed=0,
        )
