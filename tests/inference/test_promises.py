"""Whatever a plugin returns is checked where its contract is called, and named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from segue.core.errors import PluginError
from segue.core.hookspecs import hookimpl
from segue.core.plugins import PluginHost
from segue.core.tokens import Tokens
from segue.data.recordings import Recording
from segue.data.tokenizing import tokenize_recording
from segue.inference.pipeline import Pipeline

RATE = 16_000
WAVE = torch.sin(torch.arange(RATE) / 20) * 0.3


@pytest.fixture
def pipeline(tiny_pipelines: dict[str, Path]) -> Pipeline:
    return Pipeline.from_pretrained(tiny_pipelines["speech"])


def replaced(
    monkeypatch: pytest.MonkeyPatch, part: object, name: str, change: Callable[[Any], object]
) -> None:
    """Let a component's method return something else."""
    method = getattr(part, name)
    monkeypatch.setattr(part, name, lambda *arguments: change(method(*arguments)))


def scaled(tokens: Tokens) -> Tokens:
    return Tokens(tokens.ids + 10_000, tokens.lengths)


def doubled(tokens: Tokens) -> Tokens:
    return Tokens(tokens.ids.repeat_interleave(2, dim=2), tokens.lengths * 2)


@pytest.mark.parametrize(
    "change",
    [
        scaled,
        doubled,
        lambda tokens: tokens.ids,
        lambda t: Tokens(t.ids.float(), t.lengths),
        lambda t: Tokens(t.ids[:, :, :-1], t.lengths),
        lambda t: Tokens(t.ids, t.lengths.float()),
        lambda t: Tokens(t.ids, t.lengths.tolist()),
        lambda t: Tokens(None, t.lengths),  # type: ignore[arg-type]
    ],
    ids=[
        *("illegal codes", "twice the rate", "a tensor", "float ids", "a frame less"),
        *("float lengths", "a list of lengths", "no ids"),
    ],
)
@pytest.mark.parametrize("part", ["semantic_tokenizer", "codec"])
def test_tokens_that_break_the_contract_are_refused(
    pipeline: Pipeline,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    part: str,
    change: Callable[[Any], object],
) -> None:
    tokenizer = pipeline.parts[part]
    replaced(monkeypatch, tokenizer, "encode", change)
    with pytest.raises(PluginError) as caught:
        pipeline.continue_(WAVE, RATE, seconds=0.2)
    assert caught.value.place == f"{type(tokenizer).__name__} of segue"
    path = tmp_path / "a.wav"
    import soundfile

    soundfile.write(path, WAVE.numpy(), RATE)
    recording = Recording(path, 1.0, "speaker", "train")
    with pytest.raises(PluginError):
        tokenize_recording(recording, {"acoustic": tokenizer})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    "change",
    [
        lambda wave: wave * float("nan"),
        lambda wave: wave[:, :10],
        lambda wave: (wave * 100).long(),
        lambda wave: None,
    ],
    ids=["nan", "short", "integers", "nothing"],
)
def test_audio_that_breaks_the_contract_is_refused(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], object]
) -> None:
    replaced(monkeypatch, pipeline.codec, "decode", change)
    with pytest.raises(PluginError, match="decode"):
        pipeline.resynthesize(WAVE, RATE)


@pytest.mark.parametrize(
    "change",
    [
        scaled,
        lambda t: Tokens(t.ids.repeat(1, 1, 500), t.lengths * 500),
        lambda t: t.ids,
        lambda t: Tokens(t.ids, t.lengths + 3),
    ],
    ids=["illegal codes", "too many frames", "a tensor", "lengths beyond"],
)
def test_frames_that_break_the_contract_are_refused(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], object]
) -> None:
    lm = pipeline.stage_lm("semantic")
    replaced(monkeypatch, lm, "stream", lambda pieces: map(change, pieces))
    with pytest.raises(PluginError, match="stream") as caught:
        pipeline.continue_(WAVE, RATE, seconds=0.2)
    assert type(lm).__name__ in caught.value.place


def test_a_model_that_streams_nothing_is_refused(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced(monkeypatch, pipeline.stage_lm("semantic"), "stream", lambda pieces: None)
    with pytest.raises(PluginError, match="stream returned a NoneType"):
        pipeline.continue_(WAVE, RATE, seconds=0.2)


class Marker:
    def __init__(self, change: Callable[[Tensor], Any]) -> None:
        self.change = change

    @hookimpl
    def segue_after_generate(self, audio: Any) -> None:
        audio.wave = self.change(audio.wave)


@pytest.mark.parametrize(
    "change",
    [
        lambda wave: wave / 0 * 0,
        lambda wave: wave[:, :10],
        lambda wave: None,
        lambda wave: wave * 1e6,
    ],
    ids=["nan", "ten samples", "nothing", "loud"],
)
def test_hooks_may_change_samples_only(
    tiny_pipelines: dict[str, Path], change: Callable[[Tensor], Any]
) -> None:
    host = PluginHost.discover(entry_points=False)
    host.register(Marker(change), "segue-marker")
    pipeline = Pipeline.from_pretrained(tiny_pipelines["speech"], host=host)
    with pytest.raises(PluginError) as caught:
        pipeline.generate(0.2)
    assert "segue-marker" in caught.value.place


def test_what_a_hook_makes_too_loud_is_clipped_and_noted(tiny_pipelines: dict[str, Path]) -> None:
    host = PluginHost.discover(entry_points=False)
    host.register(Marker(lambda wave: wave / wave.abs().max() * 1.5), "segue-marker")
    audio = Pipeline.from_pretrained(tiny_pipelines["speech"], host=host).generate(0.2)
    assert float(audio.wave.abs().max()) == 1.0
    assert audio.notes == [("clipped a peak of 1.50",)]
