"""`segue fill`. Imports no torch."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from segue.apps.cli.generation import PLACES, PromptArgument
from segue.apps.cli.options import (
    DeviceOption,
    DomainOption,
    JsonOption,
    OutputOption,
    PipelineOption,
    SeedOption,
    SetOption,
    SignOption,
    load_pipeline,
)
from segue.apps.cli.output import renamed
from segue.apps.cli.progress import progress_bars
from segue.apps.cli.saving import check_outputs, read_recording, report_on, save_audio

OPTIONS = {"start": "--start", "end": "--end", "candidates": "--candidates"}


def fill(
    source: PromptArgument,
    start: Annotated[float, typer.Option(help="Where the stretch begins, in seconds.")],
    end: Annotated[
        float | None, typer.Option(help="Where it ends. Default: the end of the recording.")
    ] = None,
    output: OutputOption = Path("filled.wav"),
    domain: DomainOption = None,
    pipeline: PipelineOption = None,
    seed: SeedOption = 0,
    candidates: Annotated[
        int,
        typer.Option(help="Continuations to choose from, where a stage cannot look both ways."),
    ] = 8,
    overrides: SetOption = None,
    sign: SignOption = None,
    device: DeviceOption = "cpu",
    json: JsonOption = False,
) -> None:
    """Draw a stretch of a recording anew, and keep what is before and after it."""
    signer = check_outputs([output], source=source, sign=sign)
    loaded = load_pipeline(domain, pipeline, overrides, device)
    audio = read_recording(source)
    started = time.perf_counter()
    with renamed(PLACES | OPTIONS | {"prompt": str(source)}), progress_bars(json) as progress:
        result = loaded.fill(
            audio, start=start, end=end, seed=seed, candidates=candidates, progress=progress
        )
    elapsed = time.perf_counter() - started
    save_audio(loaded, result, [output], signer=signer)
    gap, ways = result.metadata["gap"], result.metadata["ways"]
    report_on(result, [output], elapsed, json, "filled", gap=gap, ways=ways)
