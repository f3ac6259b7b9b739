"""Pipelines: every mode of inference, ragged batches, determinism, round trips, refusals."""

from __future__ import annotations

import base64
import copy
import io
import json
import pickle
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import soundfile
import torch
import yaml
from pydantic import Field
from tests.conftest import melody

import segue.inference.generation
from segue import Pipeline
from segue.core.audio import Audio
from segue.core.checkpoint_files import read_manifest
from segue.core.config_files import find_domain, load_config
from segue.core.domain import Domain
from segue.core.errors import (
    AudioError,
    ConfigError,
    GenerationError,
    OutputError,
    SegueError,
    UntrainedError,
)
from segue.core.hookspecs import hookimpl
from segue.core.options import Options
from segue.core.plugins import PluginHost
from segue.core.sampling import own_generator
from segue.inference.request import GeneratedAudio, Request, metadata_of
from segue.sound.reading import read_audio

RATE = 16_000
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pipeline(tiny_pipelines: dict[str, Path]) -> Pipeline:
    return Pipeline.from_pretrained(tiny_pipelines["speech"])


def same(a: GeneratedAudio, b: GeneratedAudio) -> bool:
    return all(torch.equal(a.tokens[name].ids, b.tokens[name].ids) for name in a.tokens)


def test_a_continuation_starts_with_the_recording_and_adds_what_was_asked(
    pipeline: Pipeline,
) -> None:
    prompt = melody(1.6, seed=5)
    result = pipeline.continue_(prompt, RATE, seconds=0.8)
    kept = int(result.prompt_samples[0])
    assert kept == 1.6 * RATE
    assert result.continuation().shape[0] == 0.8 * RATE
    fade = round(0.02 * RATE)
    assert torch.equal(result.row()[: kept - fade], prompt[: kept - fade])
    assert result.tokens["semantic"].lengths.tolist() == [round(2.4 * 25)]
    assert result.tokens["acoustic"].lengths.tolist() == [round(2.4 * 50)]
    assert torch.isfinite(result.wave).all()


def test_prompt_tokens_are_the_tokenizers_own(pipeline: Pipeline) -> None:
    prompt = melody(1.6, seed=5)
    result = pipeline.continue_(prompt, RATE, seconds=0.4)
    lengths = torch.tensor([prompt.shape[0]])
    assert pipeline.config.prompt.level is not None
    prompt = prompt * (pipeline.config.prompt.level / prompt.square().mean().sqrt())
    for name, tokenizer in (
        ("semantic", pipeline.semantic_tokenizer),
        ("acoustic", pipeline.codec),
    ):
        assert tokenizer is not None
        expected = tokenizer.encode(prompt[None], lengths).row(0)
        assert torch.equal(result.tokens[name].row(0)[:, : expected.shape[1]], expected)


@pytest.fixture(scope="module")
def coarse(tiny_pipelines: dict[str, Path]) -> Pipeline:
    """The tiny pipeline with a new acoustic stage for two of the codec's three levels."""
    host = PluginHost.discover(entry_points=False)
    overrides = [
        "stages.acoustic.predicts=acoustic[0:2]",
        "stages.acoustic.lm.checkpoint=null",
        "stages.acoustic.lm.options={width: 16, depth: 1, heads: 2}",
    ]
    config = load_config(tiny_pipelines["speech"], host, overrides).config
    torch.manual_seed(0)
    return Pipeline.from_config(config, host=host, allow_untrained=True)


def test_stages_may_leave_out_a_codec_s_last_levels(coarse: Pipeline) -> None:
    prompt = melody(1.6, seed=5)
    assert coarse.codec.spec.num_levels == 3
    result = coarse.continue_(prompt, RATE, seconds=0.8, seed=4)
    assert result.tokens["acoustic"].num_levels == 2
    assert result.continuation().shape[0] == 0.8 * RATE
    assert coarse.acoustic_generation(prompt, RATE).tokens["acoustic"].num_levels == 2
    assert coarse.generate(0.4).row().shape[0] == 0.4 * RATE
    assert coarse.resynthesize(prompt, RATE).tokens["acoustic"].num_levels == 2
    assert coarse.resynthesize(prompt, RATE, levels=3).tokens["acoustic"].num_levels == 3
    whole = coarse.continue_(prompt, RATE, seconds=0.8, seed=4, chunk_seconds=0.3)
    chunks = list(coarse.stream(prompt, RATE, seconds=0.8, seed=4, chunk_seconds=0.3))
    streamed = torch.cat([chunk.row() for chunk in chunks])
    torch.testing.assert_close(streamed, whole.continuation(), atol=1e-5, rtol=1e-5)


def test_prompt_audio_can_be_the_codecs_or_left_out(pipeline: Pipeline) -> None:
    prompt = melody(1.6, seed=5)
    original, codec, none = (
        pipeline.continue_(prompt, RATE, seconds=0.4, prompt_audio=kind)
        for kind in ("original", "codec", "none")
    )
    assert same(original, codec)
    assert torch.equal(none.row(), codec.continuation())
    assert int(none.prompt_samples[0]) == 0
    decoded = pipeline.codec.decode(codec.tokens["acoustic"].ids, codec.tokens["acoustic"].lengths)
    level = pipeline.config.prompt.level
    assert level is not None
    gain = level / prompt.square().mean().sqrt()
    assert torch.allclose(codec.wave, decoded / gain, rtol=1e-4)


def test_what_does_not_fill_a_frame_is_dropped_at_the_front(pipeline: Pipeline) -> None:
    prompt = melody(1.6, seed=5)
    spare = torch.cat([torch.ones(123) * 0.9, prompt])
    a, b = (pipeline.continue_(wave, RATE, seconds=0.4) for wave in (prompt, spare))
    assert same(a, b)


def test_a_seed_determines_everything_and_another_changes_it(pipeline: Pipeline) -> None:
    prompt = melody(1.0, seed=5)
    a, b, c = (pipeline.continue_(prompt, RATE, seconds=1.0, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(a.wave, b.wave)
    assert not same(a, c)


def test_row_i_of_a_ragged_batch_is_prompt_i_alone_with_seed_plus_i(pipeline: Pipeline) -> None:
    prompts = [melody(seconds, seed) for seed, seconds in enumerate((0.7, 1.9, 1.2))]
    batch = pipeline.continue_batch([(p, RATE) for p in prompts], seconds=3.0, seed=7)
    for index, prompt in enumerate(prompts):
        alone = pipeline.continue_(prompt, RATE, seconds=3.0, seed=7 + index)
        for name in ("semantic", "acoustic"):
            assert torch.equal(batch.tokens[name].row(index), alone.tokens[name].row(0)), name
        assert torch.equal(batch.row(index), alone.row())


def test_rows_may_have_seeds_of_their_own(pipeline: Pipeline) -> None:
    prompt, seeds = melody(0.7, seed=5), [9, 3]
    batch = pipeline.continue_batch([(prompt, RATE)] * 2, seconds=0.4, seed=seeds)
    for row, seed in enumerate(seeds):
        alone = pipeline.continue_(prompt, RATE, seconds=0.4, seed=seed)
        assert torch.equal(batch.row(row), alone.row())
    generated = pipeline.generate(0.4, batch=2, seed=seeds)
    assert torch.equal(generated.row(1), pipeline.generate(0.4, seed=3).row())
    with pytest.raises(GenerationError, match="lists 3 seeds for 2 rows"):
        pipeline.generate(0.4, batch=2, seed=[1, 2, 3])


def test_each_stage_of_a_row_draws_random_numbers_of_its_own(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []

    def spy(*numbers: int) -> torch.Generator:
        generator = own_generator(*numbers)
        seeds.append(generator.initial_seed())
        return generator

    monkeypatch.setattr(segue.inference.generation, "own_generator", spy)
    pipeline.generate(0.2, batch=2)
    assert len(set(seeds)) == len(seeds) == 2 * len(pipeline.config.stages)


def test_candidates_need_a_tokenizer_that_chooses(pipeline: Pipeline) -> None:
    stage = pipeline.config.stages[0].name
    with pytest.raises(GenerationError, match="does not compare") as caught:
        pipeline.generate(0.2, sampling={stage: {"candidates": 2}})
    assert caught.value.place == f"stages.{stage}.sampling.candidates"


def test_an_exception_of_the_progress_callback_stops_the_work(pipeline: Pipeline) -> None:
    seen = []

    def stop(stage: str, done: int, total: int) -> None:
        seen.append((stage, done))
        if done >= 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        pipeline.generate(3.0, progress=stop)
    assert [stage for stage, _ in seen] == ["semantic"] and seen[0][1] <= 8


def test_generation_longer_than_every_crop(pipeline: Pipeline) -> None:
    crops = [stage.crop_seconds for stage in pipeline.config.stages]
    seconds = 1.5 * max(crops)
    result = pipeline.generate(seconds, batch=2)
    assert result.lengths.tolist() == [round(seconds * RATE)] * 2
    assert not torch.equal(result.row(0), result.row(1))


def test_acoustic_generation_keeps_the_semantic_tokens(pipeline: Pipeline) -> None:
    wave = melody(1.6, seed=6)
    a, b = (pipeline.acoustic_generation(wave, RATE, seed=seed) for seed in (0, 1))
    assert torch.equal(a.tokens["semantic"].ids, b.tokens["semantic"].ids)
    assert not torch.equal(a.tokens["acoustic"].ids, b.tokens["acoustic"].ids)
    assert a.lengths.tolist() == [1.6 * RATE]


def test_without_a_semantic_stage_recordings_still_give_its_tokens(
    tiny_pipelines: dict[str, Path], pipeline: Pipeline
) -> None:
    overrides = ["stages.semantic.drop=true"]
    alone = Pipeline.from_pretrained(tiny_pipelines["speech"], overrides=overrides)
    assert list(alone.assembly.parts) == ["semantic_tokenizer", "codec", "stages.acoustic"]
    wave = melody(1.6, seed=6)
    for through in ("codec", "semantic"):
        found, whole = (p.resynthesize(wave, RATE, through=through) for p in (alone, pipeline))
        assert torch.equal(found.row(), whole.row())
    kept, known = (p.acoustic_generation(wave, RATE).tokens["semantic"] for p in (alone, pipeline))
    assert torch.equal(kept.ids, known.ids)
    for call in (
        partial(alone.continue_, wave, RATE),
        alone.generate,
        partial(alone.stream, wave, RATE),
        partial(alone.fill, wave, RATE, 0.4, 0.8),
    ):
        with pytest.raises(GenerationError, match="no stage for semantic tokens; resynthesize"):
            call()


def test_codec_resynthesis_is_encode_and_decode_and_takes_fewer_levels(pipeline: Pipeline) -> None:
    wave = melody(1.33, seed=6)
    result = pipeline.resynthesize(wave, RATE)
    assert result.row().shape == wave.shape
    fewer = pipeline.resynthesize(wave, RATE, levels=1)
    assert fewer.tokens["acoustic"].num_levels == 1
    assert torch.equal(fewer.tokens["acoustic"].ids, result.tokens["acoustic"].ids[:, :1])
    assert not torch.equal(fewer.wave, result.wave)


def test_semantic_resynthesis_depends_on_semantic_tokens_alone(pipeline: Pipeline) -> None:
    wave = melody(1.6, seed=6)
    a = pipeline.resynthesize(wave, RATE, through="semantic")
    assert same(a, pipeline.resynthesize(wave, RATE, through="semantic"))
    assert a.lengths.tolist() == [1.6 * RATE]


def test_sampling_is_controlled_per_stage(pipeline: Pipeline) -> None:
    prompt = melody(1.0, seed=5)
    plain = pipeline.continue_(prompt, RATE, seconds=1.0)
    greedy = pipeline.continue_(
        prompt, RATE, seconds=1.0, sampling={"acoustic": {"temperature": 0}}
    )
    assert torch.equal(plain.tokens["semantic"].ids, greedy.tokens["semantic"].ids)
    assert not torch.equal(plain.tokens["acoustic"].ids, greedy.tokens["acoustic"].ids)
    assert greedy.metadata["sampling"]["acoustic"]["temperature"] == 0


def test_shared_sampling_is_for_all_stages_and_a_stage_s_own_wins(pipeline: Pipeline) -> None:
    prompt, own = melody(1.0, seed=5), {"acoustic": {"temperature": 0.5}}
    shared = {"temperature": 0.9, "top_k": 5, "top_p": 0.8}
    made = [
        pipeline.continue_(prompt, RATE, seconds=0.2, sampling=own, **shared),
        pipeline.continue_batch([(prompt, RATE)], seconds=0.2, sampling=own, **shared),
        pipeline.generate(0.2, sampling=own, **shared),
        pipeline.acoustic_generation(prompt, RATE, sampling=own, **shared),
        pipeline.fill(prompt, RATE, 0.4, 0.6, sampling=own, **shared),
        next(pipeline.stream(seconds=0.2, sampling=own, **shared)),
    ]
    for audio in made:
        used = audio.metadata["sampling"]
        assert used["semantic"] == used["semantic"] | shared
        assert used["acoustic"] == used["acoustic"] | shared | {"temperature": 0.5}


def test_without_a_seed_one_is_drawn_and_reported(pipeline: Pipeline) -> None:
    a, b = (pipeline.generate(0.4, seed=None) for _ in range(2))
    assert a.metadata["seed"] != b.metadata["seed"]
    assert f"seed {a.metadata['seed']}" in repr(a)
    assert same(a, pipeline.generate(0.4, seed=a.metadata["seed"]))


def test_every_row_is_described_with_its_own_seed(pipeline: Pipeline) -> None:
    audio = pipeline.generate(0.4, batch=3, seed=[7, 2, 5])
    assert (audio.metadata["seed"], audio.metadata["seeds"]) == (7, [7, 2, 5])
    assert "seeds 7, 2, 5" in repr(audio)
    assert [audio.described(row)["seed"] for row in range(3)] == [7, 2, 5]
    assert all("seeds" not in audio.described(row) for row in range(3))
    assert "seeds" not in pipeline.generate(0.4, seed=7).metadata


def test_copies_and_pickles_make_the_same_audio(pipeline: Pipeline) -> None:
    wanted = pipeline.generate(0.4, seed=5)
    copied = copy.deepcopy(pipeline)
    loaded = pickle.loads(pickle.dumps(pipeline))
    for other in (copied, loaded):
        assert same(other.generate(0.4, seed=5), wanted)
    with torch.no_grad():
        for parameter in copied.stage_lm("semantic").parameters():
            parameter.normal_()
    assert same(pipeline.generate(0.4, seed=5), wanted)
    assert not same(copied.generate(0.4, seed=5), wanted)


def test_device_and_number_format_are_chosen_while_loading(
    tiny_pipelines: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    loaded = Pipeline.from_pretrained(tiny_pipelines["speech"], device="auto", dtype="bfloat16")
    assert loaded.device == torch.device("cpu")
    assert next(loaded.stage_lm("semantic").parameters()).dtype == torch.bfloat16
    assert next(loaded.codec.parameters()).dtype == torch.float32
    assert loaded.generate(0.2).metadata["config"]["stages"][0]["decoding"]["weights"] == "bfloat16"
    assert loaded.to("cpu") is loaded
    with pytest.raises(ConfigError, match="use cpu"):
        loaded.to("cuda:7")
    with pytest.raises(ConfigError, match="give dtype to from_pretrained"):
        loaded.to(torch.bfloat16)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="float64"):
        Pipeline.from_pretrained(tiny_pipelines["speech"], dtype=torch.float64)


def test_moving_takes_every_part(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = copy.deepcopy(pipeline)
    monkeypatch.setattr("segue.inference.loaded.checked_device", torch.device)
    moved.to("meta")
    assert {
        tensor.device.type for part in moved.parts.values() for tensor in part.parameters()
    } == {"meta"}
    assert moved.device.type == "meta" and pipeline.device.type == "cpu"


def test_a_pipeline_and_its_audio_have_short_descriptions(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    assert repr(pipeline) == (
        "Pipeline('speech', 16000 Hz, semantic_tokenizer=mel_kmeans.v1, codec=spectral_codec.v1, "
        "stages.semantic=flat_transformer.v1, stages.acoustic=delay_transformer.v1, device=cpu)"
    )
    audio = pipeline.generate(0.4, batch=2, seed=7)
    assert repr(audio) == "GeneratedAudio(0.40 s, 0.40 s at 16000 Hz, task generate, seeds 7, 8)"
    page = audio._repr_html_()
    sounds = re.findall(r"data:audio/wav;base64,([^\"]+)", page)
    for row, sound in enumerate(sounds):
        wave, rate = soundfile.read(io.BytesIO(base64.b64decode(sound)), dtype="float32")
        assert rate == RATE
        torch.testing.assert_close(torch.from_numpy(wave), audio.row(row), atol=1e-4, rtol=0)
    assert len(sounds) == 2 and "seeds 7, 8" in page
    assert audio.wav_bytes(1) == base64.b64decode(sounds[1])
    path = audio.save(tmp_path / "second.flac", row=1)
    assert soundfile.info(path).format == "FLAC"
    torch.testing.assert_close(read_audio(path).wave, audio.row(1), atol=1e-4, rtol=0)
    with pytest.raises(OutputError, match="save"):
        audio.play()


def test_threads_share_a_pipeline(pipeline: Pipeline) -> None:
    def made(seed: int) -> GeneratedAudio:
        return pipeline.continue_(melody(1.0, seed=seed), RATE, seconds=0.5, seed=seed)

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(made, [*range(4), *range(4)]))
    for seed in range(4):
        alone = made(seed).wave
        assert torch.equal(together[seed].wave, alone)
        assert torch.equal(together[seed + 4].wave, alone)


def test_progress_reaches_the_end_of_every_stage(pipeline: Pipeline) -> None:
    seen: dict[str, list[tuple[int, int]]] = {}
    pipeline.generate(
        5.0, progress=lambda name, done, total: seen.setdefault(name, []).append((done, total))
    )
    assert {name: steps[-1] for name, steps in seen.items()} == {
        "semantic": (125, 125),
        "acoustic": (250, 250),
    }
    assert all(steps == sorted(steps) and len(steps) > 1 for steps in seen.values())


@pytest.mark.parametrize(("channels", "rate"), [(1, 8_000), (6, 44_100)])
def test_any_rate_and_channels(channels: int, rate: int, pipeline: Pipeline) -> None:
    wave = melody(1.0, seed=1, rate=rate).expand(channels, -1)
    result = pipeline.continue_(wave.numpy(), rate, seconds=0.4)
    assert any("resampled" in note for note in result.notes[0])
    assert any("mono" in note for note in result.notes[0]) == (channels > 1)
    assert abs(int(result.prompt_samples[0]) - RATE) <= pipeline.unit_samples


def test_a_long_prompt_is_cropped_to_its_end_and_says_so(pipeline: Pipeline) -> None:
    limit = pipeline.config.prompt.max_seconds
    wave = torch.cat([melody(5.0, seed=1), melody(limit, seed=2)])
    result = pipeline.continue_(wave, RATE, seconds=0.4)
    assert f"used the last {limit:g} s" in result.notes[0][0]
    assert int(result.prompt_samples[0]) == limit * RATE
    assert torch.equal(result.row()[:1000], wave[5 * RATE : 5 * RATE + 1000])


@pytest.mark.parametrize("factor", [0.02, 1.9])
def test_a_prompt_s_level_changes_the_output_s_level_alone(
    factor: float, pipeline: Pipeline
) -> None:
    prompt = melody(1.0, seed=5)
    plain = pipeline.continue_(prompt, RATE, seconds=0.4)
    scaled = pipeline.continue_(prompt * factor, RATE, seconds=0.4)
    assert same(plain, scaled)
    assert torch.allclose(scaled.wave, plain.wave * factor, atol=1e-4)


def test_a_silent_prompt_is_used_and_says_so(pipeline: Pipeline) -> None:
    result = pipeline.continue_(torch.zeros(RATE), RATE, seconds=0.4)
    assert "silent" in result.notes[0][0]
    assert result.notes[0][1] == (
        "raised by 100 dB for the models; the result is as quiet as the prompt"
    )
    assert result.wave.abs().max() < 1e-4


def test_however_quiet_a_prompt_is_its_result_has_its_level(pipeline: Pipeline) -> None:
    """Down to -120 dB, without a step at any level, in the continuation or where it joins."""
    loud = melody(1.0, seed=5)
    loud = loud / loud.square().mean().sqrt()
    plain = pipeline.continue_(0.05 * loud, RATE, seconds=0.4)
    assert plain.notes == [()]
    for decibels in (-60, -79.6, -80.4, -100, -120):
        factor = 10 ** (decibels / 20)
        quiet = pipeline.continue_(loud * factor, RATE, seconds=0.4)
        assert same(plain, quiet)
        torch.testing.assert_close(quiet.wave / factor, plain.wave / 0.05, rtol=1e-3, atol=1e-3)
        assert any("as quiet as the prompt" in note for note in quiet.notes[0]) == (decibels < -70)


def test_a_continuation_makes_up_for_the_level_that_the_codec_loses(
    pipeline: Pipeline, tiny_pipelines: dict[str, Path]
) -> None:
    matching = Pipeline.from_pretrained(
        tiny_pipelines["speech"], overrides=["prompt.match_codec=true"]
    )
    asked = {"seconds": 0.4, "seed": 2, "chunk_seconds": 0.4}
    prompts = [(melody(1.0, seed=5), RATE), (0.3 * melody(0.8, seed=6), RATE)]
    plain = pipeline.continue_batch(prompts, **asked, prompt_audio="codec")
    matched = matching.continue_batch(prompts, **asked, prompt_audio="codec")
    assert same(plain, matched)
    for row, (recorded, _) in enumerate(prompts):
        kept = int(plain.prompt_samples[row])
        alone = plain.row(row)[:kept].square().mean().sqrt()
        lost = (recorded.square().mean().sqrt() / alone).clamp(0.25, 4)
        assert lost != 1
        expected = (plain.row(row) * lost).clamp(-1, 1)
        torch.testing.assert_close(matched.row(row), expected, rtol=0.02, atol=1e-3)
    louder = Pipeline.from_pretrained(
        tiny_pipelines["speech"], overrides=["prompt.match_codec=true", "prompt.make_up_db=-6"]
    )
    lifted = louder.continue_batch(prompts, **asked)
    plain = matching.continue_batch(prompts, **asked)
    for row, (recorded, _) in enumerate(prompts):
        torch.testing.assert_close(
            lifted.row(row)[: len(recorded) // 2], recorded[: len(recorded) // 2]
        )
        added = plain.row(row)[int(plain.prompt_samples[row]) :]
        torch.testing.assert_close(lifted.row(row)[-len(added) :], added * 10 ** (-6 / 20))
    whole = matching.continue_(prompts[0][0], RATE, **asked).continuation()
    streamed = torch.cat([c.row() for c in matching.stream(prompts[0][0], RATE, **asked)])
    torch.testing.assert_close(streamed, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("wave", "rate", "place"),
    [
        (torch.full((RATE,), torch.nan), RATE, "prompt"),
        (torch.zeros(100), RATE, "prompt"),
        ("prompt.wav", RATE, "prompt"),
        ("missing.wav", 0, "missing.wav"),
        (torch.zeros(RATE), None, "prompt"),
        (torch.zeros(RATE), 0, "prompt"),
    ],
)
def test_prompts_that_cannot_be_used(
    wave: object, rate: int, place: str, pipeline: Pipeline
) -> None:
    with pytest.raises(AudioError) as caught:
        pipeline.continue_(wave, rate)
    assert caught.value.place == place


def test_a_prompt_may_be_audio(pipeline: Pipeline) -> None:
    audio = Audio(melody(1.0, seed=5), RATE, ("used the last 1.0 s of 9.0 s",))
    made = pipeline.continue_(audio, seconds=0.4)
    assert same(made, pipeline.continue_(audio.wave, RATE, seconds=0.4))
    assert made.notes[0] == audio.notes


def test_the_wrong_prompt_of_a_batch_is_named(pipeline: Pipeline) -> None:
    with pytest.raises(AudioError, match=r"prompts\[1\]"):
        pipeline.continue_batch([(torch.zeros(RATE), RATE), (torch.zeros(9), RATE)])
    with pytest.raises(GenerationError, match="prompts"):
        pipeline.continue_batch([])
    for alone in ("prompt.wav", b"RIFF", pipeline.generate(0.4), iter(["prompt.wav"])):
        with pytest.raises(AudioError, match=r"^prompts: is a \w+; give a list of prompts"):
            pipeline.continue_batch(alone)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        ({"seconds": 0}, "seconds"),
        ({"seconds": -1.0}, "seconds"),
        ({"seconds": float("nan")}, "seconds"),
        ({"seconds": 1e9}, "seconds"),
        ({"seconds": 10**400}, "seconds"),
        ({"seconds": "five"}, "seconds"),
        ({"seconds": None}, "seconds"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": 1e9}, "temperature"),
        ({"top_p": float("nan")}, "top_p"),
        ({"sampling": {"acoustic": {"guidance": 1e38}}}, "sampling.acoustic.guidance"),
        ({"sampling": {"acoustic": {"iterations": [10**9]}}}, "sampling.acoustic.iterations.0"),
        ({"seed": 2**64}, "seed"),
        ({"seed": -1}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"sampling": {"corse": {}}}, "sampling.corse"),
        ({"sampling": {"acoustic": {"temprature": 1}}}, "sampling.acoustic.temprature"),
        ({"sampling": {"acoustic": {"top_p": 0}}}, "sampling.acoustic.top_p"),
        ({"temperature": -1}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 2.0}, "top_p"),
        ({"prompt_audio": "all"}, "prompt_audio"),
    ],
)
def test_requests_out_of_range(
    arguments: dict[str, object], place: str, pipeline: Pipeline
) -> None:
    with pytest.raises(SegueError) as caught:
        pipeline.continue_(torch.zeros(RATE), RATE, **arguments)  # type: ignore[arg-type]
    assert caught.value.place == place


def test_batch_levels_and_ways_out_of_range(pipeline: Pipeline) -> None:
    with pytest.raises(GenerationError, match="batch"):
        pipeline.generate(1.0, batch=0)
    with pytest.raises(GenerationError, match="levels"):
        pipeline.resynthesize(torch.zeros(RATE), RATE, levels=4)
    with pytest.raises(GenerationError, match="through"):
        pipeline.resynthesize(torch.zeros(RATE), RATE, through="mel")  # type: ignore[arg-type]


def test_save_and_load_give_the_same_pipeline(pipeline: Pipeline, tmp_path: Path) -> None:
    directory = pipeline.save_pretrained(tmp_path / "saved")
    moved = tmp_path / "moved"
    directory.rename(moved)
    loaded = Pipeline.from_pretrained(moved)
    prompt = melody(1.0, seed=5)
    assert same(
        pipeline.continue_(prompt, RATE, seconds=1.0), loaded.continue_(prompt, RATE, seconds=1.0)
    )
    saved = yaml.safe_load((moved / "pipeline.yaml").read_text())
    assert saved["codec"]["checkpoint"] == "codec"
    manifest = json.loads((moved / "stages" / "acoustic" / "component.json").read_text())
    assert manifest["format_version"] == 1


def test_half_precision_storage_keeps_tokenizers_exact(pipeline: Pipeline, tmp_path: Path) -> None:
    full = pipeline.save_pretrained(tmp_path / "full")
    half = pipeline.save_pretrained(tmp_path / "half", lm_dtype=torch.float16)
    weights = Path("stages") / "acoustic" / "model.safetensors"
    assert (half / weights).stat().st_size < 0.7 * (full / weights).stat().st_size
    loaded = Pipeline.from_pretrained(half)
    assert loaded.assembly.streams == pipeline.assembly.streams
    assert next(loaded.stage_lm("acoustic").parameters()).dtype == torch.float32


def test_metadata_holds_the_resolved_config_short_and_without_places(pipeline: Pipeline) -> None:
    result = pipeline.generate(0.4, seed=11)
    text = json.dumps(result.metadata, indent=2)
    metadata = json.loads(text)
    assert metadata["seed"] == 11
    assert metadata["config"]["codec"]["use"] == pipeline.config.codec.use
    assert metadata["fingerprints"]["acoustic"]
    for part in (metadata["config"]["codec"], *(s["lm"] for s in metadata["config"]["stages"])):
        assert part["options"]["width"] == 16 and set(part) == {"use", "options"}
    assert '"/' not in text and str(Path.home()) not in text and len(text) < 4000
    assert metadata["description"] == ""  # the user's own weights, not those that ship


def test_metadata_names_files_without_their_folders(pipeline: Pipeline) -> None:
    class Placed(Options):
        weights: str = "/home/someone/models/lyra"
        source: dict[str, str] = Field(default={"path": "/home/someone/gpt2", "name": "a/b"})

    parts = {**pipeline.assembly.parts}
    parts["codec"] = replace(parts["codec"], options=Placed())
    request = Request("generate", 1.0, (0,), {})
    found = metadata_of(request, replace(pipeline.assembly, parts=parts))["config"]["codec"]
    assert found["options"] == {"weights": "lyra", "source": {"path": "gpt2", "name": "a/b"}}


def test_a_domain_may_ship_several_pipelines(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = pipeline.save_pretrained(tmp_path / "saved")
    other = (saved / "pipeline.yaml").read_text().replace("temperature: 1.0", "temperature: 0.9")
    (saved / "other.yaml").write_text(other)
    monkeypatch.setattr(Domain, "pretrained", saved)
    domain = find_domain("speech", pipeline.host)
    assert domain.pretrained_names == ("speech", "speech/other")
    loaded = Pipeline.from_pretrained("speech/other")
    assert {stage.sampling.temperature for stage in loaded.config.stages} == {0.9}
    first, second = (
        pipeline.generate(0.4, seed=1),
        Pipeline.from_pretrained("speech").generate(0.4, seed=1),
    )
    assert torch.equal(first.tokens["acoustic"].ids, second.tokens["acoustic"].ids)
    with pytest.raises(UntrainedError, match="segue train all --config speech/baseline --data"):
        Pipeline.from_pretrained("speech/baseline")
    with pytest.raises(ConfigError, match="speech, speech/other, speech/acoustic_only"):
        Pipeline.from_pretrained("speech/othr")


class Recorder:
    """A plugin with every hook that generation calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    @hookimpl
    def segue_pipeline_assembled(self, pipeline: object) -> None:
        self.calls.append("assembled")

    @hookimpl
    def segue_before_generate(self, request: object) -> None:
        self.calls.append(f"before {request.task}")  # type: ignore[attr-defined]

    @hookimpl
    def segue_after_generate(self, audio: GeneratedAudio) -> None:
        self.calls.append("after")
        audio.wave = audio.wave * 0.5
        audio.metadata["marked"] = True


def test_lifecycle_hooks_see_and_change_what_is_generated(
    tiny_pipelines: dict[str, Path], pipeline: Pipeline
) -> None:
    host, recorder = PluginHost.discover(entry_points=False), Recorder()
    host.register(recorder)
    marked = Pipeline.from_pretrained(tiny_pipelines["speech"], host=host).generate(0.4)
    assert recorder.calls == ["assembled", "before generate", "after"]
    assert torch.allclose(marked.wave, pipeline.generate(0.4).wave * 0.5)
    assert marked.metadata["marked"]


def test_a_filter_refuses_before_any_token_is_drawn(tiny_pipelines: dict[str, Path]) -> None:
    class Filter:
        @hookimpl
        def segue_before_generate(self, request: object) -> None:
            raise GenerationError("request", "is not allowed here", "ask for something else")

    host = PluginHost.discover(entry_points=False)
    host.register(Filter())
    loaded = Pipeline.from_pretrained(tiny_pipelines["speech"], host=host)
    steps: list[object] = []
    with pytest.raises(GenerationError, match="not allowed here"):
        loaded.generate(0.4, progress=lambda *step: steps.append(step))
    assert steps == []


def test_two_markers_each_see_the_other_s_work(tiny_pipelines: dict[str, Path]) -> None:
    class Half:
        @hookimpl
        def segue_after_generate(self, audio: GeneratedAudio) -> None:
            audio.wave = audio.wave * 0.5

    class Half2(Half):
        pass

    host = PluginHost.discover(entry_points=False)
    plain = Pipeline.from_pretrained(tiny_pipelines["speech"], host=host).generate(0.4)
    host.register(Half(), "one")
    host.register(Half2(), "two")
    both = Pipeline.from_pretrained(tiny_pipelines["speech"], host=host).generate(0.4)
    assert torch.allclose(both.wave, plain.wave * 0.25)


def test_saving_never_deletes_what_is_no_pipeline(pipeline: Pipeline, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="holds no pipeline"):
        pipeline.save_pretrained(precious)
    assert (precious / "thesis.txt").read_text() == "years of work"
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(OutputError, match="holds no pipeline"):
        pipeline.save_pretrained(file)
    saved = pipeline.save_pretrained(tmp_path / "saved")
    assert pipeline.save_pretrained(saved) == saved


def test_lengths_that_floats_round_up_ask_for_no_frame_too_many(pipeline: Pipeline) -> None:
    for units in (7, 29, 57):
        seconds = units * pipeline.unit_samples / RATE
        assert pipeline.generate(seconds).lengths.tolist() == [units * pipeline.unit_samples]


@pytest.mark.parametrize(
    "limit",
    [{"temperature": 1e-45}, {"top_k": 10**30}, {"top_k": 1}, {"top_p": 1e-300}, {"top_p": 1.0}],
    ids=str,
)
def test_sampling_at_its_limits(pipeline: Pipeline, limit: dict[str, float]) -> None:
    greedy = pipeline.generate(0.2, temperature=0).row()
    found = pipeline.generate(0.2, **limit).row()  # type: ignore[arg-type]
    assert found.isfinite().all() and found.shape == greedy.shape
    if limit.get("temperature") or limit.get("top_k") == 1:
        assert torch.equal(found, greedy)


def test_the_shortest_length_is_one_frame(pipeline: Pipeline) -> None:
    assert pipeline.generate(1e-9).lengths.tolist() == [pipeline.unit_samples]


def test_a_prompt_shorter_than_a_frame_is_refused(tiny_pipelines: dict[str, Path]) -> None:
    loaded = Pipeline.from_pretrained(
        tiny_pipelines["speech"], overrides=["prompt.min_seconds=0.01"]
    )
    with pytest.raises(AudioError, match="shorter than one frame"):
        loaded.continue_(torch.ones(200) * 0.1, RATE, seconds=0.4)


def test_loud_output_is_kept_within_full_scale_and_says_so(pipeline: Pipeline) -> None:
    prompt = melody(1.0, seed=5)
    loud = pipeline.continue_(prompt / prompt.abs().max(), RATE, seconds=2.0, prompt_audio="codec")
    assert float(loud.wave.abs().max()) <= 1.0
    quiet = pipeline.continue_(prompt * 0.01, RATE, seconds=2.0, prompt_audio="codec")
    peak = float(quiet.wave.abs().max()) * 100 / float(prompt.abs().max())
    assert any("clipped" in note for note in loud.notes[0]) == (peak > 1.0)


@pytest.mark.parametrize(
    "call",
    [
        lambda p: p.continue_batch([torch.zeros(RATE)]),
        lambda p: p.continue_batch([(torch.zeros(RATE),)]),
        lambda p: p.generate(0.4, batch="two"),
        lambda p: p.generate(0.4, batch=2.5),
        lambda p: p.resynthesize(torch.zeros(RATE), RATE, levels="all"),
        lambda p: p.generate(0.4, sampling={"acoustic": 5}),
        lambda p: p.generate(0.4, sampling=["acoustic"]),
        lambda p: Pipeline.from_pretrained(None),  # type: ignore[arg-type]
        lambda p: Pipeline.from_pretrained("speech", device="abacus"),
    ],
)
def test_wrong_types_end_in_one_sentence(
    call: Callable[[Pipeline], object], pipeline: Pipeline
) -> None:
    with pytest.raises(SegueError):
        call(pipeline)


@pytest.mark.parametrize(
    ("call", "fix"),
    [
        (lambda p: p.generate(0.4, temprature=1), "did you mean 'temperature'"),
        (lambda p: p.continue_(torch.zeros(RATE), RATE, secods=1), "did you mean 'seconds'"),
        (
            lambda p: p.fill(torch.zeros(RATE), RATE, 0.1, 0.2, seconds=1),
            "use one of sampling, seed",
        ),
    ],
)
def test_unknown_arguments_are_named(
    call: Callable[[Pipeline], object], fix: str, pipeline: Pipeline
) -> None:
    with pytest.raises(GenerationError, match=f"is not an argument; {fix}"):
        call(pipeline)


def test_numpy_numbers_are_numbers(pipeline: Pipeline) -> None:
    numpy = pytest.importorskip("numpy")
    result = pipeline.continue_(
        melody(1.0, seed=5).numpy(), numpy.int64(RATE), seconds=numpy.float32(0.4),
        seed=numpy.int64(3),
    )  # fmt: skip
    assert result.metadata["seed"] == 3
    json.dumps(result.metadata)


def test_a_part_without_weights_is_saved_with_the_package_that_it_comes_from(
    tiny_pipelines: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline.from_pretrained(tiny_pipelines["speech"])
    monkeypatch.setattr(type(pipeline.codec), "state_dict", lambda *_, **__: {})
    folder = pipeline.save_pretrained(tmp_path / "saved")
    saved = yaml.safe_load((folder / "pipeline.yaml").read_text())["codec"]["checkpoint"]
    assert read_manifest(folder / saved).made_by.startswith("segue")
