"""Streaming: the same audio, in chunks, made while later ones are not yet."""

from __future__ import annotations

from pathlib import Path

import pytest
import soundfile
import torch
from tests.conftest import melody

from segue import Pipeline
from segue.core.config_files import load_config
from segue.core.errors import GenerationError, OutputError
from segue.core.hookspecs import hookimpl
from segue.core.interfaces import AcousticCodec, StageLM, Tokens
from segue.core.plugins import PluginHost
from segue.core.streaming import StreamingEncoder
from segue.inference import transcoder
from segue.inference.request import GeneratedAudio
from segue.plugins.models.flat_transformer.model import FlatTransformer
from segue.sound.open_audio import OpenAudio

RATE = 16_000


@pytest.fixture(scope="module")
def pipeline(tiny_pipelines: dict[str, Path]) -> Pipeline:
    return Pipeline.from_pretrained(tiny_pipelines["speech"])


def joined(chunks: list[GeneratedAudio]) -> torch.Tensor:
    return torch.cat([chunk.row() for chunk in chunks])


@pytest.mark.parametrize(("chunk", "seconds"), [(0.04, 0.5), (0.3, 2.5), (30.0, 0.5)])
def test_chunks_together_are_the_continuation(
    pipeline: Pipeline, chunk: float, seconds: float
) -> None:
    prompt = melody(1.6, seed=5)
    whole = pipeline.continue_(prompt, RATE, seconds=seconds, seed=4, chunk_seconds=chunk)
    chunks = list(pipeline.stream(prompt, RATE, seconds=seconds, seed=4, chunk_seconds=chunk))
    torch.testing.assert_close(joined(chunks), whole.continuation(), atol=1e-5, rtol=1e-5)
    if chunk < seconds:
        assert len(chunks) > 1


def test_chunks_from_nothing_are_what_generate_makes(pipeline: Pipeline) -> None:
    whole = pipeline.generate(2.0, seed=4, chunk_seconds=0.5)
    chunks = list(pipeline.stream(seconds=2.0, seed=4, chunk_seconds=0.5))
    torch.testing.assert_close(joined(chunks), whole.row(), atol=1e-5, rtol=1e-5)


def test_a_chunk_comes_out_before_later_tokens_are_drawn(pipeline: Pipeline) -> None:
    seen: list[tuple[str, int, int]] = []
    stream = pipeline.stream(
        melody(1.6, seed=5), RATE, seconds=20.0, chunk_seconds=0.5,
        progress=lambda *step: seen.append(step),
    )  # fmt: skip
    first = next(stream)
    assert first.wave.shape[1] > 0
    furthest = {stage: max(done for name, done, _ in seen if name == stage) for stage, *_ in seen}
    total = {stage: all_ for stage, _, all_ in seen}
    assert furthest.keys() == total.keys() == {"semantic", "acoustic"}
    assert all(furthest[stage] < total[stage] / 4 for stage in total)
    # Between chunks the models are in no other mode than before.
    assert not torch.is_inference_mode_enabled()
    stream.close()  # type: ignore[attr-defined]


def test_two_streams_at_once_do_not_disturb_each_other(pipeline: Pipeline) -> None:
    prompts = [melody(1.6, seed=seed) for seed in (5, 6)]
    options = {"seconds": 2.0, "seed": 1, "chunk_seconds": 0.2}
    alone = [joined(list(pipeline.stream(p, RATE, **options))) for p in prompts]  # type: ignore[arg-type]
    streams = [pipeline.stream(p, RATE, **options) for p in prompts]  # type: ignore[arg-type]
    chunks: list[list[GeneratedAudio]] = [[], []]
    for pair in zip(*streams, strict=True):
        for kept, chunk in zip(chunks, pair, strict=True):
            kept.append(chunk)
    assert len(chunks[0]) >= 10  # they took turns
    for kept, wanted in zip(chunks, alone, strict=True):
        assert torch.equal(joined(kept), wanted)


def test_tokens_of_a_chunk_are_those_of_its_samples(pipeline: Pipeline) -> None:
    prompt, size = melody(1.6, seed=5), pipeline.codec.spec.frame_size
    whole = pipeline.continue_(prompt, RATE, seconds=2.0, seed=4, chunk_seconds=0.25)
    chunks = list(pipeline.stream(prompt, RATE, seconds=2.0, seed=4, chunk_seconds=0.25))
    for chunk in chunks:
        assert chunk.row().shape[0] == size * int(chunk.tokens["acoustic"].lengths[0])
    codes = torch.cat([chunk.tokens["acoustic"].row(0) for chunk in chunks], dim=1)
    assert torch.equal(codes, whole.tokens["acoustic"].row(0)[:, -codes.shape[1] :])
    assert codes.shape[1] == 100


def test_smaller_chunks_draw_other_windows(pipeline: Pipeline) -> None:
    prompt = melody(1.6, seed=5)
    large = pipeline.continue_(prompt, RATE, seconds=4.0, seed=4)
    small = pipeline.continue_(prompt, RATE, seconds=4.0, seed=4, chunk_seconds=0.4)
    assert large.wave.shape == small.wave.shape
    assert not torch.equal(large.wave, small.wave)
    assert small.metadata["chunk_seconds"] == 0.4


def test_windows_grow_from_one_chunk_to_as_many_frames_as_fit(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Late chunks cost no more than the continuation itself: twice the windows would."""
    lm, windows = pipeline.stage_lm("acoustic"), []
    stream = type(lm).stream

    def spy(self: StageLM, given: object, prompt: object, count: int, *rest: object) -> object:
        if self is lm:
            windows.append(count)
        return stream(self, given, prompt, count, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(type(lm), "stream", spy)
    list(pipeline.stream(seconds=4.0, chunk_seconds=0.2))
    assert windows == [10, 40, 50, 50, 50]  # of 100 frames, half of them known


def test_hooks_see_every_chunk(tiny_pipelines: dict[str, Path], plugin_host: PluginHost) -> None:
    class Halver:
        calls = 0

        @hookimpl
        def segue_after_generate(self, audio: GeneratedAudio) -> None:
            self.calls += 1
            audio.wave = audio.wave / 2

    plain = Pipeline.from_pretrained(tiny_pipelines["speech"], host=plugin_host)
    wanted = joined(list(plain.stream(seconds=1.0, chunk_seconds=0.25)))
    halver = Halver()
    plugin_host.register(halver)
    chunks = list(plain.stream(seconds=1.0, chunk_seconds=0.25))
    assert halver.calls == len(chunks) > 2
    torch.testing.assert_close(joined(chunks), wanted / 2)


@pytest.mark.parametrize("chunk", [0, 0.001, float("nan"), "x", 1e9, None])
def test_chunks_out_of_range_are_refused_before_anything_is_drawn(
    pipeline: Pipeline, chunk: object
) -> None:
    with pytest.raises(GenerationError, match="chunk_seconds"):
        pipeline.stream(seconds=1.0, chunk_seconds=chunk)  # type: ignore[arg-type]


def test_a_codec_that_looks_at_everything_cannot_stream(
    tiny_pipelines: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline.from_pretrained(tiny_pipelines["speech"])
    monkeypatch.setattr(pipeline.codec, "decode_context", None)
    with pytest.raises(GenerationError, match=r"codec: .*cannot stream"):
        pipeline.stream(seconds=1.0)


def test_long_audio_is_decoded_in_pieces_that_change_nothing(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [(melody(seconds, seed=5), RATE) for seconds in (1.0, 1.6)]
    whole = pipeline.continue_batch(prompts, seconds=3.0, prompt_audio="codec")
    monkeypatch.setattr(transcoder, "PIECE_SECONDS", 0.5)
    pieces = pipeline.continue_batch(prompts, seconds=3.0, prompt_audio="codec")
    torch.testing.assert_close(pieces.wave, whole.wave, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_long_round_trip_is_made_in_pieces_that_change_nothing(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, chunked: bool
) -> None:
    wave, codec = melody(5.13, seed=6), pipeline.codec
    whole = pipeline.resynthesize(wave, RATE)
    monkeypatch.setattr(transcoder, "PIECE_SECONDS", 1.0)
    monkeypatch.setattr(transcoder, "MARGIN_SECONDS", 0.5)
    longest: list[int] = []
    encode = type(codec).encode

    def counted(self: AcousticCodec, audio: torch.Tensor, lengths: torch.Tensor) -> Tokens:
        longest.append(audio.shape[1])
        return encode(self, audio, lengths)

    class Chunks(StreamingEncoder):
        """Take one chunk after the other; a codec that carries a state does so by itself."""

        def __init__(self) -> None:
            self.kept = torch.zeros(1, 0)

        def push(self, wave: torch.Tensor) -> torch.Tensor:
            assert wave.shape[1] <= RATE
            self.kept = torch.cat([self.kept, wave], dim=1)
            return torch.zeros(1, codec.spec.num_levels, 0, dtype=torch.long)

        def finish(self) -> torch.Tensor:
            return encode(codec, self.kept, torch.tensor([self.kept.shape[1]])).ids

    monkeypatch.setattr(type(codec), "encode", counted)
    if chunked:
        monkeypatch.setattr(type(codec), "streaming_encoder", lambda self: Chunks())
    pieces = pipeline.resynthesize(wave, RATE)
    assert pieces.row().shape == wave.shape
    assert len(longest) == (0 if chunked else 6) and max(longest, default=0) <= 2 * RATE
    assert torch.equal(pieces.tokens["acoustic"].ids, whole.tokens["acoustic"].ids)
    torch.testing.assert_close(pieces.wave, whole.wave, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("rate", "offset"), [(RATE, 0.0), (22_050, 0.0), (RATE, 9.0)])
def test_a_file_is_recoded_in_pieces_that_change_nothing(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rate: int, offset: float
) -> None:
    """Loud, in stereo, at another rate, off zero: every piece is treated as the whole is."""
    left = 3 * melody(3.3 * rate / RATE, seed=7) + offset
    path = tmp_path / "loud.wav"
    soundfile.write(path, torch.stack([left, left], dim=1).numpy(), rate, subtype="FLOAT")
    whole = pipeline.resynthesize(path)
    monkeypatch.setattr(transcoder, "PIECE_SECONDS", 1.0)
    monkeypatch.setattr(transcoder, "MARGIN_SECONDS", 0.5)
    monkeypatch.setattr(OpenAudio.blocks_at, "__defaults__", (1,))
    pieces = list(pipeline.recode(path))
    assert len(pieces) > 2 and max(piece.row().shape[0] for piece in pieces) <= 2 * RATE
    ids = torch.cat([piece.tokens["acoustic"].ids for piece in pieces], dim=2)
    assert torch.equal(ids, whole.tokens["acoustic"].ids)
    wave = torch.cat([piece.row() for piece in pieces])
    torch.testing.assert_close(wave, whole.row(), atol=1e-4, rtol=1e-4)
    assert pieces[0].notes[0][: len(whole.notes[0])] == whole.notes[0]
    assert "mixed 2 channels to mono" in whole.notes[0] and "of 3" not in pieces[1].notes[0]
    assert any(note.startswith("removed a DC offset") for note in whole.notes[0]) == bool(offset)


# --- audio that ends by itself -----------------------------------------------------------------


@pytest.fixture
def ending(tiny_pipelines: dict[str, Path], plugin_host: PluginHost) -> Pipeline:
    """A pipeline whose semantic stage ends the audio after about 20 frames (0.8 s)."""
    overrides = [
        "stages.semantic.lm.checkpoint=null",
        "stages.semantic.lm.options={width: 16, depth: 1, heads: 2, end_of_audio: true}",
    ]
    config = load_config(tiny_pipelines["speech"] / "pipeline.yaml", plugin_host, overrides).config
    torch.manual_seed(0)
    pipeline = Pipeline.from_config(config, host=plugin_host, allow_untrained=True)
    lm = pipeline.stage_lm("semantic")
    assert isinstance(lm, FlatTransformer) and lm.end_head is not None
    with torch.no_grad():
        lm.end_head.weight.zero_()
        lm.end_head.bias.fill_(-3.0)
    return pipeline


def test_all_streams_of_a_row_end_where_its_audio_ends(ending: Pipeline) -> None:
    prompts = [(melody(seconds, seed), RATE) for seed, seconds in enumerate((1.0, 1.6, 1.2))]
    batch = ending.continue_batch(prompts, seconds=6.0, seed=3)
    ends = batch.tokens["semantic"].lengths
    assert len(set(ends.tolist())) == 3 and ends.max() < 25 * 7
    assert torch.equal(batch.tokens["acoustic"].lengths, 2 * ends)
    assert torch.equal(batch.lengths, ends * RATE // 25)
    for row, (prompt, rate) in enumerate(prompts):
        assert any(note.startswith("ended by itself after") for note in batch.notes[row])
        assert not batch.wave[row, int(batch.lengths[row]) :].any()
        alone = ending.continue_(prompt, rate, seconds=6.0, seed=3 + row)
        assert torch.equal(alone.tokens["acoustic"].row(0), batch.tokens["acoustic"].row(row))
        torch.testing.assert_close(alone.row(), batch.row(row), atol=1e-4, rtol=1e-4)


def test_a_stream_ends_where_the_audio_ends(ending: Pipeline) -> None:
    prompt = melody(1.6, seed=5)
    whole = ending.continue_(prompt, RATE, seconds=6.0, seed=4, chunk_seconds=0.5)
    assert 0 < whole.continuation().shape[0] < 6.0 * RATE
    chunks = list(ending.stream(prompt, RATE, seconds=6.0, seed=4, chunk_seconds=0.5))
    torch.testing.assert_close(joined(chunks), whole.continuation(), atol=1e-5, rtol=1e-5)


def test_an_end_right_after_the_prompt_adds_nothing(ending: Pipeline) -> None:
    lm = ending.stage_lm("semantic")
    assert isinstance(lm, FlatTransformer) and lm.end_head is not None
    with torch.no_grad():
        lm.end_head.bias.fill_(50.0)
    prompt = melody(1.6, seed=5)
    assert ending.continue_(prompt, RATE, seconds=2.0).continuation().shape[0] == 0
    assert list(ending.stream(prompt, RATE, seconds=2.0)) == []
    assert ending.generate(2.0).row().shape[0] == RATE // 25  # one frame: nothing ends before it


@pytest.mark.parametrize("seconds", [0.52, 1.4])
def test_audio_that_did_not_end_by_itself_is_not_said_to(
    pipeline: Pipeline, seconds: float
) -> None:
    made = [
        pipeline.generate(seconds),
        pipeline.continue_(melody(1.6, seed=5), RATE, seconds=seconds),
        pipeline.acoustic_generation(melody(seconds, seed=5), RATE),
    ]
    assert not any("ended by itself" in note for audio in made for note in audio.notes[0])


# --- what plugins may rely on ------------------------------------------------------------------


def test_a_model_that_does_not_see_to_it_generates_without_gradients(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = pipeline.stage_lm("semantic")
    seen: list[bool] = []
    monkeypatch.setattr(type(lm), "stream", StageLM.stream)
    monkeypatch.setattr(type(lm), "generate", lambda self, g, p, n, *_: record(seen, p, n))
    pipeline.generate(0.4)
    assert seen and not any(seen)


def record(seen: list[bool], prompt: Tokens, num_frames: int) -> Tokens:
    seen.append(torch.is_grad_enabled())
    return Tokens.full(torch.zeros(*prompt.ids.shape[:2], num_frames, dtype=torch.long))


def test_what_a_later_stage_cannot_do_is_refused_before_an_earlier_one_runs(
    pipeline: Pipeline,
) -> None:
    seen: list[str] = []
    for changes in ({"guidance": 2.0}, {"iterations": (4,)}):
        with pytest.raises(GenerationError, match=r"stages\.acoustic\.sampling\."):
            pipeline.generate(
                1.0, sampling={"acoustic": changes}, progress=lambda name, *_: seen.append(name)
            )
    assert seen == []


def test_rounded_weights_are_not_saved(tiny_pipelines: dict[str, Path], tmp_path: Path) -> None:
    halved = Pipeline.from_pretrained(
        tiny_pipelines["speech"], overrides=["stages.acoustic.decoding.weights=bfloat16"]
    )
    assert halved.generate(0.4).row().shape[0] == 0.4 * RATE
    with pytest.raises(OutputError, match=r"stages\.acoustic\.decoding\.weights.*dtype='float32'"):
        halved.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
