"""Whatever a plugin returns is checked where its contract is called, and named."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from segue.core.audio import Audio
from segue.core.errors import PluginError
from segue.core.hookspecs import hookimpl
from segue.core.interfaces import Component
from segue.core.options import Options
from segue.core.plugins import PluginHost
from segue.core.tokens import StageBatch, Tokens
from segue.data.recordings import Recording
from segue.data.tokenizing import tokenize_recording
from segue.inference.detection import judge
from segue.inference.pipeline import Pipeline
from segue.inference.promises import check_fitted, scores_of
from segue.plugins.detectors.spectral.config import SpectralDetectorOptions
from segue.plugins.detectors.spectral.model import SpectralDetector

RATE = 16_000
WAVE = torch.sin(torch.arange(RATE) / 20) * 0.3


@pytest.fixture(scope="module")
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
        lambda t: Tokens(t.ids.to("meta"), t.lengths),
        lambda t: Tokens(t.ids, t.lengths.to("meta")),
        lambda t: Tokens(t.ids.to_sparse(), t.lengths),
    ],
    ids=[
        *("illegal codes", "twice the rate", "a tensor", "float ids", "a frame less"),
        *("float lengths", "a list of lengths", "no ids"),
        *("ids without data", "lengths without data", "sparse ids"),
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
        lambda wave: wave.to("meta"),
        lambda wave: wave.to_sparse(),
        lambda wave: wave.to(torch.float8_e4m3fn),
        lambda wave: wave * 1e30,
    ],
    ids=["nan", "short", "integers", "nothing", "no data", "sparse", "eight bits", "too loud"],
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
        lambda t: Tokens(t.ids, -1 - t.lengths),
    ],
    ids=["illegal codes", "too many frames", "a tensor", "lengths beyond", "lengths below 0"],
)
def test_frames_that_break_the_contract_are_refused(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], object]
) -> None:
    lm = pipeline.stage_lm("semantic")
    replaced(monkeypatch, lm, "stream", lambda pieces: map(change, pieces))
    with pytest.raises(PluginError, match="stream") as caught:
        pipeline.continue_(WAVE, RATE, seconds=0.2)
    assert type(lm).__name__ in caught.value.place


@pytest.mark.parametrize(
    ("pieces", "problem"),
    [
        (None, "stream returned a NoneType"),
        ([None], "stream yielded a NoneType"),
        (itertools.repeat(Tokens.empty(1, 1)), "20 pieces in a row without a frame"),
    ],
    ids=["nothing", "none among its pieces", "no frame ever"],
)
def test_a_model_that_streams_no_frames_is_refused(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, pieces: object, problem: str
) -> None:
    monkeypatch.setattr("segue.inference.promises.MOST_WAITS", 20)
    replaced(monkeypatch, pipeline.stage_lm("semantic"), "stream", lambda _: pieces)
    with pytest.raises(PluginError, match=problem):
        pipeline.continue_(WAVE, RATE, seconds=0.2)


def test_codecs_are_not_asked_what_no_frame_sounds_like(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced(monkeypatch, pipeline.stage_lm("semantic"), "stream", lambda pieces: iter(()))
    monkeypatch.delattr(type(pipeline.codec), "decode")
    assert pipeline.generate(0.2).wave.shape == (1, 0)
    assert list(pipeline.stream(seconds=0.2)) == []


def test_audio_that_still_has_a_gradient_is_taken_without_it(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.inference_mode(False):
        wave = torch.ones(1, 3 * pipeline.codec.spec.frame_size, requires_grad=True)
    monkeypatch.setattr(pipeline.codec, "decode", lambda *arguments: wave)
    codes = Tokens.full(torch.zeros(1, 1, 3, dtype=torch.long))
    assert not pipeline.audio.decode(codes).requires_grad


def test_log_likelihoods_above_0_are_refused(pipeline: Pipeline) -> None:
    lm = pipeline.stage_lm("semantic")
    batch = StageBatch(Tokens.full(torch.zeros(1, 1, 4, dtype=torch.long)))
    assert scores_of(lm, batch).max() <= 0
    lm = copy.copy(lm)
    object.__setattr__(lm, "score", lambda batch: torch.full((1, 1, 4), 0.5))
    with pytest.raises(PluginError, match="which is above 0"):
        scores_of(lm, batch)


@pytest.mark.parametrize(
    ("figures", "buffer", "fitted", "problem"),
    [
        (None, 0.0, True, "fit returned a NoneType"),
        ({"inertia": "low"}, 0.0, True, "returned a str, not a number"),
        ({}, float("nan"), True, "NaN or infinite numbers in buffer"),
        ({}, 0.0, False, "is_fitted is false after fit"),
    ],
)
def test_what_a_component_breaks_while_it_is_fitted_is_refused(
    figures: object, buffer: float, fitted: bool, problem: str
) -> None:
    component = Component(Options())
    component.register_buffer("buffer", torch.zeros(1))
    assert check_fitted(component, {"inertia": 1}) == {"inertia": 1.0}
    component.register_buffer("buffer", torch.full((1,), buffer))
    component.__class__ = type("Unfitted", (Component,), {"is_fitted": fitted})
    with pytest.raises(PluginError, match=problem):
        check_fitted(component, figures)


@pytest.mark.parametrize(
    "error", [ValueError("x"), SystemExit(5), BaseException(), StopIteration()], ids=repr
)
@pytest.mark.parametrize(
    ("part", "call"),
    [("codec", "encode"), ("codec", "decode"), ("stages.semantic", "stream")],
)
def test_a_component_of_others_that_fails_is_named(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, part: str, call: str, error: BaseException
) -> None:
    def fails(*arguments: object) -> object:
        raise error

    component = pipeline.parts[part]
    members = {call: fails, "__module__": "others.parts"}
    monkeypatch.setattr(component, "__class__", type("Theirs", (type(component),), members))
    with pytest.raises(PluginError, match=f"{call} failed: {type(error).__name__}") as caught:
        pipeline.continue_(WAVE, RATE, seconds=0.2)
    assert caught.value.place == "Theirs of others"


def test_a_mistake_of_segue_s_own_keeps_its_traceback(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced(monkeypatch, pipeline.codec, "decode", lambda wave: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pipeline.resynthesize(WAVE, RATE)


@pytest.mark.parametrize(
    "change",
    [lambda s: s * float("nan"), lambda s: s[:, :2], lambda s: s.tolist(), lambda s: s.long()],
    ids=["nan", "two columns", "a list", "integers"],
)
def test_scores_that_break_the_contract_are_refused(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], object]
) -> None:
    detector = SpectralDetector(SpectralDetectorOptions()).eval()
    replaced(monkeypatch, detector, "score", change)
    with pytest.raises(PluginError, match="score returned"):
        judge(detector, Audio(WAVE, RATE))


def test_codes_of_a_streaming_encoder_are_checked(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Encoder:
        def push(self, wave: Any) -> Any:
            return torch.full((1, 3, 2), 10_000)

    monkeypatch.setattr("segue.inference.transcoder.PIECE_SECONDS", 0.5)
    monkeypatch.setattr(pipeline.codec, "streaming_encoder", Encoder)
    with pytest.raises(PluginError, match="streaming encoder returned the code 10000"):
        pipeline.audio.encode_whole(Audio(WAVE, RATE), torch.tensor(1.0))
    levels = pipeline.codec.spec.num_levels
    Encoder.push = lambda self, wave: torch.zeros(1, levels, 999).long()  # type: ignore[method-assign]
    with pytest.raises(PluginError, match=r"gave [0-9]+ frames too many"):
        pipeline.audio.encode_whole(Audio(WAVE, RATE), torch.tensor(1.0))
    Encoder.push = lambda self, wave: torch.zeros(1, levels, 0).long()  # type: ignore[method-assign]
    Encoder.finish = lambda self: torch.zeros(1, levels, 1).long()  # type: ignore[attr-defined]
    with pytest.raises(PluginError, match=r"gave [0-9]+ frames too few"):
        pipeline.audio.encode_whole(Audio(WAVE, RATE), torch.tensor(1.0))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda wave: wave[:, :0], "too few"),
        (lambda wave: wave[:, :-1], "too few"),
        (lambda wave: wave.repeat(1, 9), "too many"),
    ],
    ids=["nothing", "a sample less", "nine times as many"],
)
def test_a_stream_of_another_length_is_refused(
    pipeline: Pipeline,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Any], object],
    problem: str,
) -> None:
    decoder = pipeline.codec.streaming_decoder()
    replaced(monkeypatch, decoder, "push", change)
    monkeypatch.setattr(pipeline.codec, "streaming_decoder", lambda: decoder)
    with pytest.raises(PluginError, match=f"gave [0-9]+ samples {problem}"):
        list(pipeline.stream(WAVE, RATE, seconds=0.4, chunk_seconds=0.1))


class Marker:
    def __init__(self, change: Callable[[Any], object]) -> None:
        self.change = change

    @hookimpl
    def segue_after_generate(self, audio: Any) -> None:
        self.change(audio)


def assign(name: str, change: Callable[[Any], object]) -> Callable[[Any], object]:
    return lambda audio: setattr(audio, name, change(getattr(audio, name)))


def loop(audio: Any) -> None:
    audio.metadata["self"] = audio.metadata


BAD_HOOKS: list[tuple[Callable[[Any], object], str]] = [
    (assign("wave", lambda wave: wave / 0 * 0), "NaN"),
    (assign("wave", lambda wave: wave[:, :10]), "changed its shape"),
    (assign("wave", lambda wave: None), "became a NoneType"),
    (assign("wave", lambda wave: wave * 1e6), "peak of"),
    (assign("wave", lambda wave: wave.to("meta")), "it is on meta"),
    (assign("wave", lambda wave: wave.to_sparse()), "sparse"),
    (lambda audio: delattr(audio, "wave"), "became a NoneType"),
    (assign("sample_rate", lambda rate: rate // 2), "audio.sample_rate was replaced"),
    (assign("lengths", lambda lengths: None), "audio.lengths was replaced"),
    (assign("metadata", lambda metadata: None), "not a dict"),
    (assign("metadata", lambda metadata: {}), "lost .*seed"),
    (lambda audio: audio.metadata.update(mark=torch.zeros(2)), "what JSON cannot"),
    (loop, "what JSON cannot"),
]


@pytest.fixture(scope="module")
def hooked(tiny_pipelines: dict[str, Path]) -> tuple[Pipeline, Marker]:
    host = PluginHost.discover(entry_points=False)
    marker = Marker(lambda audio: None)
    host.register(marker, "segue-marker")
    return Pipeline.from_pretrained(tiny_pipelines["speech"], host=host), marker


@pytest.mark.parametrize(("change", "problem"), BAD_HOOKS, ids=[p for _, p in BAD_HOOKS])
def test_hooks_may_change_samples_and_add_metadata_only(
    hooked: tuple[Pipeline, Marker], change: Callable[[Any], object], problem: str
) -> None:
    pipeline, marker = hooked
    marker.change = change
    with pytest.raises(PluginError, match=problem) as caught:
        pipeline.generate(0.04)
    assert "segue-marker" in caught.value.place


def test_samples_keep_their_number_format_whatever_hooks_do(
    hooked: tuple[Pipeline, Marker],
) -> None:
    pipeline, marker = hooked
    marker.change = assign("wave", lambda wave: wave.double().requires_grad_())
    wave = pipeline.generate(0.04).wave
    assert wave.dtype == torch.float32 and not wave.requires_grad


def test_what_a_hook_makes_too_loud_is_clipped_and_noted(hooked: tuple[Pipeline, Marker]) -> None:
    pipeline, marker = hooked
    marker.change = assign("wave", lambda wave: wave / wave.abs().max() * 1.5)
    audio = pipeline.generate(0.2)
    assert float(audio.wave.abs().max()) == 1.0
    assert audio.notes == [("clipped a peak of 1.50",)]
