"""The shipped pipelines as a user runs them: from a prompt file to a WAV, for minutes on end."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.report import Report
from benchmarks.timing import median_seconds, peak_memory_mib, seconds
from segue.core.config_files import find_domain
from segue.core.interfaces import StageBatch, StageLM, Tokens
from segue.core.options import Decoding, Sampling
from segue.core.plugins import default_host
from segue.core.sampling import row_generators
from segue.inference.pipeline import Pipeline
from segue.plugins.layers import drawing
from segue.plugins.layers.decoding import Decoder
from segue.plugins.layers.drawing import Drawer
from segue.plugins.layers.quantize import rounded
from segue.plugins.layers.transformer import Transformer
from segue.sound.reading import read_audio

DOMAINS = ("speech", "piano")
STEPWISE = ("speech/three_stage",)  # whose stages all draw from left to right
AUDIO_SECONDS = 10.0
STREAM_SECONDS = 20.0
BATCH = 16
LENGTHS = (10, 30, 60, 300)
ROWS = (2, 6, 32)
KNOWN, STEPS = 300, 20  # positions
GREEDY_SECONDS = 4.0


def command(domain: str, audio_seconds: float, output: Path) -> list[str]:
    """Return what a user types to continue the domain's own prompt."""
    prompt = find_domain(domain, default_host()).prompt
    program = [sys.executable, "-m", "segue", "continue", str(prompt)]
    return [*program, "-d", domain, "-o", str(output), "--seconds", str(audio_seconds), "--json"]


def real_time(report: Report, repeats: int) -> None:
    """Measure the whole command (starting Python, loading, writing) and calls once loaded."""
    print(f"Shipped pipelines, {AUDIO_SECONDS:g} s of audio, prompt file to WAV")
    for domain in DOMAINS:
        with tempfile.TemporaryDirectory() as folder:
            call = command(domain, AUDIO_SECONDS, Path(folder) / "out.wav")

            def run(call: list[str] = call) -> None:
                subprocess.run(call, check=True, capture_output=True)

            took = report.note(f"{domain}_command", median_seconds(run, repeats), "s")
        report.ratio(f"realtime_{domain}", AUDIO_SECONDS / took, "audio seconds per second")
        pipeline = Pipeline.from_pretrained(domain)
        audio = read_audio(find_domain(domain, default_host()).prompt)

        def generated(pipeline: Pipeline = pipeline, audio: Any = audio) -> None:
            pipeline.continue_batch([audio], seconds=AUDIO_SECONDS)

        inside = median_seconds(generated, repeats)
        report.note(f"{domain}_once_loaded", AUDIO_SECONDS / inside, "x real time")
        first = median_seconds(lambda p=pipeline, a=audio: next(chunks(p, a)), repeats)  # type: ignore[misc]
        report.note(f"{domain}_first_chunk", first, "s until a stream has given its first chunk")
        # In turn, so that a machine whose speed drifts is compared with itself.
        turns = [
            seconds(lambda p=pipeline, a=audio: list(chunks(p, a)))  # type: ignore[misc]
            / seconds(lambda p=pipeline, a=audio: p.continue_batch([a], seconds=STREAM_SECONDS))  # type: ignore[misc]
            for _ in range(repeats)
        ]
        report.ratio(f"{domain}_stream_vs_continue", median(turns), "time of 20 s of audio")
        batch = seconds(
            lambda p=pipeline, a=audio: p.continue_batch([a] * BATCH, seconds=AUDIO_SECONDS)  # type: ignore[misc]
        )
        report.ratio(f"{domain}_batch_of_16", BATCH * inside / batch, "times one by one")


def chunks(pipeline: Pipeline, audio: Any) -> Iterator[Any]:
    """Stream a continuation in chunks of the default length."""
    return pipeline.stream(audio.wave, audio.sample_rate, seconds=STREAM_SECONDS)


def rows(report: Report, repeats: int) -> None:
    """Compare a decoding step of many rows with one of a guided row, which is two."""
    print(f"Rows of a step of the acoustic stage of speech, {KNOWN} positions known")
    lm = Pipeline.from_pretrained("speech").stage_lm("acoustic")
    transformer = lm.transformer
    assert isinstance(transformer, Transformer)
    width = transformer.norm.weight.shape[0]
    took = {}
    for count in ROWS:
        known, new = torch.randn(count, KNOWN, width), torch.randn(count, width)
        positions = torch.arange(KNOWN).float().expand(count, -1)
        decoder = Decoder(
            transformer, known, positions, positions >= 0, STEPS * (repeats + 1), lm.decoding
        )

        def some(decoder: Decoder = decoder, new: Tensor = new) -> None:
            for _ in range(STEPS):
                decoder.step(new)

        milliseconds = median_seconds(some, repeats) / STEPS * 1e3
        took[count] = report.note(f"step_of_{count}_rows", milliseconds, "ms")
    least, most = ROWS[0], ROWS[-1]
    ratio = took[least] * most / took[most] / least
    report.ratio("rows_32_vs_2", ratio, "rows a second: what a batch can gain")


def long_audio(report: Report, repeats: int) -> None:
    """Measure time and peak memory of one continuation against its length."""
    print("Length")
    took: dict[int, float] = {}
    memory: dict[int, float] = {}
    pipeline = Pipeline.from_pretrained("speech")
    audio = read_audio(find_domain("speech", default_host()).prompt)
    for length in LENGTHS:
        calls = [
            seconds(lambda length=length: pipeline.continue_batch([audio], seconds=length))  # type: ignore[misc]
            for _ in range(repeats)
        ]
        took[length] = report.note(f"generation_{length}s", median(calls), "s")
        with tempfile.TemporaryDirectory() as folder:
            peak = peak_memory_mib(command("speech", length, Path(folder) / "out.wav"))
        memory[length] = report.note(f"peak_memory_{length}s", peak, "MiB")
    report.ratio("memory_5min_vs_30s", memory[300] / memory[30], "peak of the whole process")
    report.ratio(
        "time_5min_vs_30s", took[300] / took[30] / 10, "time per second of audio: 1 is linear"
    )


class Recorder(Drawer):
    """Draws greedily and keeps what was drawn; or is led along what another one kept."""

    def __init__(self, led_by: list[Tensor] | None = None) -> None:
        super().__init__(Sampling(temperature=0), [])
        self.drawn: list[Tensor] = []
        self._led_by = led_by

    @property
    def plain(self) -> bool:
        """Return False: the kernel would draw without this."""
        return False

    def draw_levels(self, logits: Tensor, levels: Sequence[int]) -> Tensor:
        best = logits.argmax(dim=-1)
        self.drawn.append(best)
        return best if self._led_by is None else self._led_by[len(self.drawn) - 1].clone()


def greedy(
    lm: StageLM,
    given: tuple[Tokens, ...],
    prompt: Tokens,
    weights: str,
    led_by: list[Tensor] | None = None,
) -> list[Tensor]:
    """Return the likeliest token at every place of a continuation of ``GREEDY_SECONDS``."""
    lm.decode_with(Decoding.model_validate({"weights": weights}))
    recorder = Recorder(led_by)
    frames = round(GREEDY_SECONDS * lm.stage.target.frame_rate)
    rows = row_generators(0, len(prompt.lengths))
    with patch.object(drawing, "Drawer", lambda *_: recorder):
        lm.generate(given, prompt, frames, recorder.sampling, rows)
    return recorder.drawn


def same_greedy_tokens(report: Report) -> None:
    """Count how often shipped stages draw the greedy token of fp32 with eight-bit weights.

    After the same history, and running free, where one other token changes all that follow; with
    the number of different tokens, since the agreement of a model that repeats one says little.
    And what the prompt's own tokens lose in likelihood.
    """
    for source in STEPWISE:
        pipeline, domain = Pipeline.from_pretrained(source), source.partition("/")[0]
        audio = read_audio(find_domain(domain, default_host()).prompt)
        whole = pipeline.continue_batch([audio], seconds=GREEDY_SECONDS).tokens
        for config in pipeline.config.stages:
            lm = pipeline.stage_lm(config.name)
            target = lm.stage.target
            given = tuple(whole[g.stream].levels(g.start, g.stop) for g in lm.stage.given)
            kept = whole[target.stream].ids.shape[2] - round(GREEDY_SECONDS * target.frame_rate)
            prompt = Tokens.full(whole[target.stream].ids[:, target.start : target.stop, :kept])
            full = greedy(lm, given, prompt, "stored")
            led = greedy(lm, given, prompt, "int8", led_by=full)
            free = greedy(lm, given, prompt, "int8")
            for found, how in ((led, "after_the_same_history"), (free, "running_free")):
                pairs = zip(found, full, strict=True)
                same = torch.cat([(a == b).flatten() for a, b in pairs]).float().mean()
                report.note(f"int8_{domain}_{config.name}_{how}", float(same), "of tokens equal")
            distinct = torch.cat([ids.flatten() for ids in full]).unique().numel()
            report.note(f"int8_{domain}_{config.name}_distinct", distinct, "different tokens")
            lost = nats_lost(lm, StageBatch(prompt, given))
            report.note(f"int8_{domain}_{config.name}_loss", lost, "nats more per prompt token")


def nats_lost(lm: StageLM, batch: StageBatch) -> float:
    """Return the nats that real tokens lose where all weights are rounded to eight bits."""
    return float((lm.score(batch) - rounded(lm).score(batch)).mean())
