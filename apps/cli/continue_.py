"""`segue continue`: a recorded prompt goes in, prompt and continuation come out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from segue.apps.cli.options import (
    ChunkOption,
    DeviceOption,
    DomainOption,
    JsonOption,
    OutputOption,
    PipelineOption,
    SeedOption,
    SetOption,
    load_pipeline,
)
from segue.apps.cli.output import (
    check_outputs,
    console,
    named,
    note,
    print_json,
    progress_bars,
    save_audio,
    summary,
)


def command(
    prompt: Annotated[Path, typer.Argument(help="Audio in any format that libsndfile reads.")],
    output: OutputOption = Path("continuation.wav"),
    domain: DomainOption = None,
    pipeline: PipelineOption = None,
    seconds: Annotated[float, typer.Option("--seconds", help="Audio to add.")] = 5.0,
    seed: SeedOption = 0,
    chunk_seconds: ChunkOption = None,
    prompt_audio: Annotated[
        str, typer.Option(help="What the file starts with: original, codec or none.")
    ] = "original",
    picture: Annotated[
        Path | None, typer.Option(help="Also draw a spectrogram (PNG; needs segue\\[plot]).")
    ] = None,
    overrides: SetOption = None,
    device: DeviceOption = "cpu",
    json: JsonOption = False,
) -> None:
    """Continue a recording, keeping its voice or its music."""
    from segue.core.audio import read_audio

    check_outputs([output], source=prompt, picture=picture)
    loaded = load_pipeline(domain, pipeline, overrides, device)
    audio = read_audio(prompt, last_seconds=loaded.config.prompt.max_seconds)
    started = time.perf_counter()
    places = {"prompt": prompt, "seconds": "--seconds", "seed": "--seed"}
    places |= {"prompt_audio": "--prompt-audio", "chunk_seconds": "--chunk-seconds"}
    with named(places), progress_bars(json) as progress:
        result = loaded.continue_batch(
            [audio],
            seconds=seconds,
            seed=seed,
            prompt_audio=prompt_audio,  # type: ignore[arg-type]  # checked by the pipeline
            chunk_seconds=chunk_seconds,
            progress=progress,
        )
    elapsed = time.perf_counter() - started
    save_audio(loaded, result, [output], picture, title=str(prompt))
    report = summary(result, output, elapsed, result.notes[0])
    if json:
        print_json(report)
        return
    for line in result.notes[0]:
        note(line)
    console.print(
        f"{output}: {report['seconds_generated']} s generated in {elapsed:.1f} s "
        f"({report['real_time_factor']}x real time), seed {seed}"
    )
