"""`segue stream`: a continuation that can be heard while it is still being made."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

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
    places = {"seconds": "--seconds", "seed": "--seed", "chunk_seconds": "--chunk-seconds"}
    note(f"16-bit little-endian mono samples at {loaded.sample_rate} Hz")
    started = time.perf_counter()
    with named(places | {"prompt": prompt or ""}), progress_bars(False) as progress:
        chunks = loaded.stream(
            None if audio is None else audio.wave,
            0 if audio is None else audio.sample_rate,
            seconds=seconds,
            chunk_seconds=chunk_seconds,
            seed=seed,
            progress=progress,
        )
        made = 0.0
        for chunk in chunks:
            if not made:
                note(f"first {chunk.row().shape[0] / chunk.sample_rate:.2f} s of audio after "
                     f"{time.perf_counter() - started:.2f} s")  # fmt: skip
            made += chunk.row().shape[0] / chunk.sample_rate
            samples = (chunk.row() * 32767).round().short().numpy()
            sys.stdout.buffer.write(samples.astype("<i2").tobytes())
            sys.stdout.buffer.flush()
    note(f"{made:.2f} s generated in {time.perf_counter() - started:.1f} s, seed {seed}")
