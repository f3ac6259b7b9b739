"""`segue resynthesize`: audio through tokens and back."""

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
    note,
    print_json,
    progress_bars,
    save_audio,
    summary,
)
from segue.core.errors import ConfigError

WAYS = ("codec", "semantic", "sampled")


def command(
    source: Annotated[Path, typer.Argument(help="Audio in any format that libsndfile reads.")],
    output: OutputOption = Path("resynthesis.wav"),
    domain: DomainOption = None,
    pipeline: PipelineOption = None,
    through: Annotated[
        str,
        typer.Option(
            help="codec: encode and decode. semantic: most likely sound of the semantic tokens. "
            "sampled: acoustic generation, another voice each seed."
        ),
    ] = "codec",
    levels: Annotated[
        int | None,
        typer.Option(
            help="With codec: decode so many levels. Default: those that the stages predict."
        ),
    ] = None,
    seed: SeedOption = 0,
    overrides: SetOption = None,
    device: DeviceOption = "cpu",
    json: JsonOption = False,
) -> None:
    """Hear what the codec, or the semantic tokens alone, keep of a recording."""
    from segue.core.audio import read_audio

    if through not in WAYS:
        raise ConfigError("--through", f"{through!r} is unknown", f"use one of {', '.join(WAYS)}")
    if levels is not None and through != "codec":
        raise ConfigError("--levels", "goes with --through codec only", "leave it out")
    check_outputs([output], source=source)
    loaded = load_pipeline(domain, pipeline, overrides, device)
    audio = read_audio(source, last_seconds=loaded.config.prompt.max_seconds)
    started = time.perf_counter()
    places = {"prompt": source, "seed": "--seed", "levels": "--levels"}
    with named(places), progress_bars(json) as progress:
        if through == "sampled":
            result = loaded.acoustic_generation(
                audio.wave, audio.sample_rate, seed=seed, progress=progress
            )
        else:
            result = loaded.resynthesize(
                audio.wave,
                audio.sample_rate,
                through=through,  # type: ignore[arg-type]  # one of WAYS
                levels=levels,
                progress=progress,
            )
    elapsed = time.perf_counter() - started
    result.notes[0] = (*audio.notes, *result.notes[0])
    result.metadata["through"] = through
    save_audio(loaded, result, [output])
    report = {**summary(result, output, elapsed, result.notes[0]), "through": through}
    if json:
        print_json(report)
        return
    for line in result.notes[0]:
        note(line)
    console.print(f"{output}: {report['seconds_generated']} s through {through}")
