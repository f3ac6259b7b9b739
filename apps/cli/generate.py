"""`segue generate`: audio from nothing but a seed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from segue.apps.cli.options import (
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
    print_json,
    progress_bars,
    save_audio,
    summary,
)


def command(
    output: OutputOption = Path("generated.wav"),
    domain: DomainOption = None,
    pipeline: PipelineOption = None,
    seconds: Annotated[float, typer.Option("--seconds", help="Length of the audio.")] = 5.0,
    count: Annotated[
        int,
        typer.Option(min=1, max=1024, help="Files to make; those after the first are numbered."),
    ] = 1,
    seed: SeedOption = 0,
    overrides: SetOption = None,
    device: DeviceOption = "cpu",
    json: JsonOption = False,
) -> None:
    """Generate audio unconditionally."""
    paths = [output, *(_numbered(output, row) for row in range(1, count))]
    check_outputs(paths)
    loaded = load_pipeline(domain, pipeline, overrides, device)
    started = time.perf_counter()
    with (
        named({"seconds": "--seconds", "seed": "--seed", "batch": "--count"}),
        progress_bars(json) as progress,
    ):
        result = loaded.generate(seconds, batch=count, seed=seed, progress=progress)
    elapsed = time.perf_counter() - started
    save_audio(loaded, result, paths)
    report = {**summary(result, output, elapsed, ()), "outputs": [str(path) for path in paths]}
    if json:
        print_json(report)
        return
    console.print(
        f"{', '.join(report['outputs'])}: {report['seconds_generated']} s generated in "
        f"{elapsed:.1f} s ({report['real_time_factor']}x real time), seed {seed}"
    )


def _numbered(path: Path, row: int) -> Path:
    return path.with_name(f"{path.stem}-{row + 1}{path.suffix}")
