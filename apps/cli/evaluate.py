"""`segue evaluate`: figures with confidence intervals."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segue.apps.cli import evaluate_semantic
from segue.apps.cli.options import (
    DATA_HELP,
    Chosen,
    HeldOut,
    JsonOption,
    ReportOption,
    SeedOption,
    SplitOption,
    listed,
    whole_numbers,
    with_groups,
)
from segue.apps.cli.output import note, print_table, renamed
from segue.apps.cli.program import Program
from segue.apps.cli.progress import progress_bars
from segue.apps.cli.reports import (
    check_report,
    checked_split,
    chosen_metrics,
    domain_of,
    finish,
    held_out,
    metrics_of_both_kinds,
    note_if_few,
)
from segue.apps.cli.saving import save_audio
from segue.core.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from segue.data.recordings import Recording
    from segue.inference.pipeline import Pipeline
    from segue.inference.request import GeneratedAudio

MOST_LETTERS = 60  # of a recording's name in that of a file

app = Program(no_args_is_help=True, help="Measure tokenizers and pipelines on recordings.")
app.command("semantic")(evaluate_semantic.semantic)
app.command("pitches")(evaluate_semantic.pitches)


@app.command()
@with_groups
def codec(
    on: HeldOut,
    chosen: Chosen,
    levels: Annotated[
        list[str] | None,
        typer.Option(help="Numbers of levels, such as 1,2,4,8. Default: 1, 2, 4 ... all."),
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            help="Metrics, as pesq.v1,visqol.v1:mode=audio. Default: all installed quick ones."
        ),
    ] = None,
    sample_rate: Annotated[
        int | None,
        typer.Option(min=8000, help="Sample rate for metrics. Default: the codec's own."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Measure a codec's quality, codebook use and speed; the stages are not loaded."""
    check_report(on.output)
    from segue.core.interfaces import AcousticCodec
    from segue.core.plugins import default_host
    from segue.evaluation.codec import evaluate_codec
    from segue.evaluation.subjects import load_tokenizer

    host, config = default_host(), chosen.config()
    recordings = held_out(on.data, on.items, on.split)
    loaded = load_tokenizer(config, "codec", host, chosen.device)
    assert isinstance(loaded, AcousticCodec)
    total = loaded.spec.num_levels
    counts = [2**power for power in range(total.bit_length()) if 2**power < total] + [total]
    if levels is not None:
        counts = whole_numbers(levels, "--levels")
    built, left_out = chosen_metrics(host, "metric", metrics, domain_of(host, config.name))
    places = {"levels": "--levels", "sample_rate": "--sample-rate"}
    with renamed(places), progress_bars(json) as progress:
        figures = evaluate_codec(
            loaded, config.prompt, recordings, built, counts, progress, sample_rate
        )
    report = {
        "subject": "codec",
        "pipeline": config.name,
        "codec": config.codec.use,
        "spec": loaded.spec.to_json(),
        "data": on.data,
        "split": on.split,
        "sample_rate": sample_rate or loaded.spec.sample_rate,
        **figures,
        "left_out": left_out,
    }
    note_if_few(recordings, on)
    finish(report, "levels", figures["levels"], on.output, json)
    if not json:
        _show_codebooks(report)


def _show_codebooks(report: Mapping[str, Any]) -> None:
    encode = f"{report['encode_speed']:g}"
    speeds = [
        (name, f"{row['kbit_per_second']:g}", encode, f"{row['decode_speed']:g}")
        for name, row in report["levels"].items()
    ]
    print_table(("levels", "kbit/s", "encode x real time", "decode x real time"), speeds)
    books = [
        (
            book["level"],
            f"{book['used']:.1%}",
            f"{book['perplexity']:.1%}",
            f"{book['entropy_kbit_per_second']:.3f}",
            book["frames"],
        )
        for book in report["codebooks"]
    ]
    columns = ("codebook", "codes used", "perplexity / codes", "kbit/s by entropy", "frames")
    print_table(columns, books)


@app.command()
@with_groups
def continuations(
    on: HeldOut,
    chosen: Chosen,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            help="Metrics, as health.v1,speaker.v1. Default: all installed ones for the domain."
        ),
    ] = None,
    prompt_seconds: Annotated[
        float, typer.Option(min=0.5, max=3600, help="Prompt from the start of each recording.")
    ] = 3.0,
    seconds: Annotated[float, typer.Option(min=0.5, max=3600, help="Audio to add.")] = 5.0,
    complete: Annotated[
        bool, typer.Option("--complete", help="Only recordings that last for both.")
    ] = False,
    seed: SeedOption = 0,
    audio: Annotated[
        Path | None,
        typer.Option(help="Folder for the measured audio, prompts included, as WAV files."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Continue held-out recordings and measure health, voice, phones, key and rhythm."""
    check_report(on.output)
    for option, value in (("--prompt-seconds", prompt_seconds), ("--seconds", seconds)):
        if math.isnan(value):  # not all versions of typer refuse it
            raise ConfigError(option, "is not a number", "give seconds")
    places = {"seconds": "--seconds", "seed": "--seed", "prompt": "--prompt-seconds"}
    with renamed(places):
        if audio is not None:
            _check_new(audio)
        least = prompt_seconds + seconds if complete else 0.0
        recordings = held_out(on.data, on.items, on.split, least)
        loaded = chosen.load()
        from segue.evaluation.continuations import evaluate_continuations

        keep = None if audio is None else _keeper(loaded, audio)
        kind = domain_of(loaded.host, chosen.domain or loaded.config.name)
        built, left_out = chosen_metrics(loaded.host, "continuation_metric", metrics, kind)
        with progress_bars(json) as progress:
            figures = evaluate_continuations(
                loaded,
                recordings,
                built,
                prompt_seconds=prompt_seconds,
                seconds=seconds,
                seed=seed,
                progress=progress,
                keep=keep,
            )
    report = {
        "subject": "continuations",
        "pipeline": loaded.config.name,
        "data": on.data,
        "split": on.split,
        "prompt_seconds": prompt_seconds,
        "seconds": seconds,
        "seed": seed,
        **figures,
        "left_out": left_out,
    }
    note_if_few(recordings, on)
    finish(report, "metric", figures["metrics"], on.output, json)


def _check_new(folder: Path) -> None:
    """Refuse a folder for audio that cannot be written, or holds that of another evaluation."""
    from segue.core.files import check_writable

    if any(folder.glob("[0-9][0-9][0-9]-*.wav")):
        raise OutputError(str(folder), "holds audio of another evaluation", "name a new folder")
    check_writable(folder / "001.wav")


def _keeper(pipeline: Pipeline, folder: Path) -> Callable[[Recording, GeneratedAudio], None]:
    """Return a function that writes audio as numbered files, as `segue continue` does."""
    numbers = count(1)

    def keep(recording: Recording, made: GeneratedAudio) -> None:
        start = "" if recording.start is None else f"-{recording.start:g}s"
        name = re.sub(r"[^\w.-]+", "_", recording.path.stem[:MOST_LETTERS] + start)
        save_audio(pipeline, made, [folder / f"{next(numbers):03d}-{name}.wav"])

    return keep


@app.command()
@with_groups
def resynthesis(
    on: HeldOut,
    chosen: Chosen,
    of: Annotated[
        list[str] | None,
        typer.Option(
            help="acoustic_generation, semantic, codec, recording, foreign. Default: all."
        ),
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option(help="Metrics of either kind, as phone_error.v1,speaker.v1. Default: all."),
    ] = None,
    least_seconds: Annotated[
        float, typer.Option(min=0, max=3600, help="Leave shorter recordings out.")
    ] = 0.0,
    seed: SeedOption = 0,
    json: JsonOption = False,
) -> None:
    """Measure what acoustic generation, semantic tokens alone and the codec keep."""
    check_report(on.output)
    with renamed({"seed": "--seed"}):
        from segue.evaluation.resynthesis import WAYS, evaluate_resynthesis

        wanted = listed(of or []) or list(WAYS)
        ways = [way for way in WAYS if way in wanted]
        if len(ways) != len(set(wanted)):
            problem = f"{','.join(wanted)!r} names something else"
            raise ConfigError("--of", problem, f"use {', '.join(WAYS)}")
        recordings = held_out(on.data, on.items, on.split, least_seconds)
        loaded = chosen.load()
        kind = domain_of(loaded.host, chosen.domain or loaded.config.name)
        pairs, sets, left_out = metrics_of_both_kinds(loaded.host, metrics, kind)
        with progress_bars(json) as progress:
            figures = evaluate_resynthesis(
                loaded, recordings, ways, pairs, sets, seed=seed, progress=progress
            )
    report = {
        "subject": "resynthesis",
        "pipeline": loaded.config.name,
        "data": on.data,
        "split": on.split,
        "seed": seed,
        **figures,
        "left_out": left_out,
    }
    note_if_few(recordings, on)
    finish(report, "way", figures["ways"], on.output, json)


@app.command()
@with_groups
def likelihood(
    chosen: Chosen,
    data: Annotated[
        Path | None,
        typer.Option(help="A token store (`segue tokenize`): nats per token of it."),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(help="CSV of minimal pairs, as sWUGGY's and sBLIMP's gold.csv."),
    ] = None,
    audio: Annotated[
        Path | None,
        typer.Option(help="Folder that paths in --pairs start from. Default: its own."),
    ] = None,
    shuffled: Annotated[
        str | None,
        typer.Option(help=f"Recordings: their true continuation against others. {DATA_HELP}"),
    ] = None,
    items: Annotated[
        int, typer.Option(min=1, help="Most batches of each stage; most recordings.")
    ] = 50,
    split: SplitOption = "valid",
    prompt_seconds: Annotated[
        float, typer.Option(min=0.5, max=60, help="With --shuffled: the part that stays in order.")
    ] = 3.0,
    seconds: Annotated[
        float, typer.Option(min=0.5, max=60, help="With --shuffled: the part that is judged.")
    ] = 5.0,
    piece_seconds: Annotated[
        float, typer.Option(min=0.02, max=10, help="With --shuffled: pieces that change places.")
    ] = 0.5,
    seed: SeedOption = 0,
    output: ReportOption = None,
    json: JsonOption = False,
) -> None:
    """Measure nats per token, minimal pairs, and true against shuffled continuations."""
    check_report(output)
    if data is None and pairs is None and shuffled is None:
        raise ConfigError("--data", "nothing to judge", "give --data, --pairs or --shuffled")
    from segue.data.token_store import TokenStore
    from segue.evaluation.likelihood import (
        Spoiling,
        evaluate_likelihood,
        evaluate_order,
        evaluate_pairs,
        read_pairs,
    )

    asked = [] if pairs is None else read_pairs(pairs, audio)
    # Its faults are found before weights are loaded.
    store = None
    if data is not None:
        part = checked_split(split)
        if part is None:
            raise ConfigError("--split", "is all, but tokens are read by split", "name one of them")
        store = TokenStore(data, part)
    least = prompt_seconds + seconds
    recordings = [] if shuffled is None else held_out(shuffled, items, split, least)
    loaded = chosen.load()
    groups: dict[str, Any] = {}
    with progress_bars(json) as progress, renamed({"piece_seconds": "--piece-seconds"}):
        if store is not None:
            groups |= evaluate_likelihood(loaded, store, items, progress)
        if asked:
            groups |= evaluate_pairs(loaded, asked, progress)
        if recordings:
            order = Spoiling(prompt_seconds, seconds, piece_seconds, seed)
            groups |= evaluate_order(loaded, recordings, order, progress)
    report = {
        "subject": "likelihood",
        "pipeline": loaded.config.name,
        "data": str(data or pairs or shuffled),
        **groups,
    }
    finish(report, "likelihood", groups, output, json)
    for name, figures in groups.items():
        if figures.get("unusable") and not json:
            note(f"{name}: {figures['unusable']} recordings or pairs cannot be used")
