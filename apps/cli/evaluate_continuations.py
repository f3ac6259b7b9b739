"""`segue evaluate continuations`: what a pipeline makes of held-out prompts, by any metrics."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segue.apps.cli.evaluate_metrics import chosen_metrics, domain_of, tell_left_out
from segue.apps.cli.options import (
    DeviceOption,
    DomainOption,
    HeldOutOption,
    ItemsOption,
    JsonOption,
    PipelineOption,
    ReportOption,
    SeedOption,
    SetOption,
    SplitOption,
    load_pipeline,
)
from segue.apps.cli.output import named, progress_bars, save_audio
from segue.apps.cli.reports import held_out, show, written
from segue.core.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from segue.core.generated import GeneratedAudio
    from segue.core.pipeline import Pipeline
    from segue.data.recordings import Recording

MOST_LETTERS = 60  # of a recording's name in that of a file


def command(
    data: HeldOutOption,
    domain: DomainOption = None,
    pipeline: PipelineOption = None,
    items: ItemsOption = 50,
    split: SplitOption = "valid",
    metrics: Annotated[
        str | None,
        typer.Option(
            help="Such as health.v1,speaker.v1. Default: all for the domain that are installed."
        ),
    ] = None,
    prompt_seconds: Annotated[
        float, typer.Option(min=0.5, max=3600, help="Of each recording, to continue from.")
    ] = 3.0,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.5, max=3600, help="Audio to add.")
    ] = 5.0,
    complete: Annotated[
        bool, typer.Option("--complete", help="Only recordings that last for both.")
    ] = False,
    seed: SeedOption = 0,
    audio: Annotated[
        Path | None,
        typer.Option(help="Folder to write what is measured to, prompts included, as WAV files."),
    ] = None,
    output: ReportOption = None,
    overrides: SetOption = None,
    device: DeviceOption = "cpu",
    json: JsonOption = False,
) -> None:
    """Continue held-out recordings and measure it: health, voice, phones, key, rhythm."""
    if math.isnan(prompt_seconds):
        raise ConfigError("--prompt-seconds", "is no number", "give seconds")
    places = {"seconds": "--seconds", "seed": "--seed", "prompt": "--prompt-seconds"}
    with written(output) as write, named(places):
        loaded = load_pipeline(domain, pipeline, overrides, device)
        from segue.evaluation.continuations import evaluate_continuations

        keep = None if audio is None else _keeper(loaded, audio)
        kind = domain_of(loaded.host, domain or loaded.config.name)
        chosen, left_out = chosen_metrics(loaded.host, "continuation_metric", metrics, kind)
        least = prompt_seconds + seconds if complete else 0.0
        recordings = held_out(data, items, split, least)
        with progress_bars(json) as progress:
            figures = evaluate_continuations(
                loaded,
                recordings,
                chosen,
                prompt_seconds=prompt_seconds,
                seconds=seconds,
                seed=seed,
                progress=progress,
                keep=keep,
            )
        report = {
            "subject": "continuations",
            "pipeline": loaded.config.name,
            "data": str(data),
            "split": split,
            "prompt_seconds": prompt_seconds,
            "seconds": seconds,
            "seed": seed,
            **figures,
            "left_out": left_out,
        }
        write(report)
    show(report, "metric", figures["metrics"], json)
    if not json:
        tell_left_out(report)


def _keeper(pipeline: Pipeline, folder: Path) -> Callable[[Recording, GeneratedAudio], None]:
    """Writes what it gets as numbered files with their descriptions, as `segue continue` does.

    Raises:
        OutputError: if the folder cannot be written, or has such files of another evaluation.
    """
    from segue.core.files import check_writable

    if any(folder.glob("[0-9][0-9][0-9]-*.wav")):
        raise OutputError(str(folder), "holds audio of another evaluation", "name a new folder")
    check_writable(folder / "001.wav")
    numbers = count(1)

    def keep(recording: Recording, made: GeneratedAudio) -> None:
        start = "" if recording.start is None else f"-{recording.start:g}s"
        name = re.sub(r"[^\w.-]+", "_", recording.path.stem[:MOST_LETTERS] + start)
        save_audio(pipeline, made, [folder / f"{next(numbers):03d}-{name}.wav"])

    return keep
