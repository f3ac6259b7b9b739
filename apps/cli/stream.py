"""`segue stream`: a continuation that can be heard while it is still being made."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segue.apps.cli.options import (
    DeviceOption,
    DomainOption,
    PipelineOption,
    SeedOption,
    SetOption,
    load_pipeline,
)
from segue.apps.cli.output import named, note, progress_bars

if TYPE_CHECKING:
    from segue.core.generated import GeneratedAudio


def command(
    prompt: Annotated[
        Path | None,
        typer.Argument(help="Audio in any format that libsndfile reads; none: from nothing."),
    ] = None,
    domain: DomainOption = None,
    pipeline: PipelineOption = None,
    seconds: Annotated[float, typer.Option("--seconds", help="Audio to add.")] = 5.0,
    chunk_seconds: Annotated[
        float, typer.Option("--chunk-seconds", help="Audio per piece; less comes sooner.")
    ] = 1.0,
    seed: SeedOption = 0,
    overrides: SetOption = None,
    device: DeviceOption = "cpu",
) -> None:
    """Write the continuation to standard output as it is made: raw 16-bit mono samples.

    segue stream prompt.wav | aplay -f S16_LE -r 16000
    """
    from segue.core.audio import read_audio

    if sys.stdout.isatty():
        note("this writes audio, not text: pipe it to a player or a file")
        raise typer.Exit(2)
    loaded = load_pipeline(domain, pipeline, overrides, device)
    audio = None
    if prompt is not None:
        audio = read_audio(prompt, last_seconds=loaded.config.prompt.max_seconds)
    note(f"16-bit little-endian mono samples at {loaded.sample_rate} Hz")
    places = {"seconds": "--seconds", "seed": "--seed", "chunk_seconds": "--chunk-seconds"}
    with named(places | {"prompt": prompt or ""}), progress_bars(False) as progress:
        chunks = loaded.stream(
            *(() if audio is None else (audio.wave, audio.sample_rate)),
            seconds=seconds,
            chunk_seconds=chunk_seconds,
            seed=seed,
            progress=progress,
        )
        _write(chunks, seed)


def _write(chunks: Iterator[GeneratedAudio], seed: int) -> None:
    """Write samples as they come, and say when the first ones and the last ones did."""
    started, made = time.perf_counter(), 0.0
    for chunk in chunks:
        length = chunk.row().shape[0] / chunk.sample_rate
        if not made:
            elapsed = time.perf_counter() - started
            note(f"first {length:.2f} s of audio after {elapsed:.2f} s")
        made += length
        samples = (chunk.row() * 32767).round().short().numpy()
        sys.stdout.buffer.write(samples.astype("<i2").tobytes())
        sys.stdout.buffer.flush()
    note(f"{made:.2f} s generated in {time.perf_counter() - started:.1f} s, seed {seed}")
