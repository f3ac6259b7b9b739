"""`segue evaluate semantic` and `segue evaluate pitches`: what tokens reveal of the content."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segue.apps.cli.options import (
    Chosen,
    DomainOption,
    HeldOut,
    JsonOption,
    ReportOption,
    SplitOption,
    chosen_source,
    conditions,
    listed,
    whole_numbers,
    with_groups,
)
from segue.apps.cli.progress import progress_bars
from segue.apps.cli.reports import check_report, checked_split, finish, held_out, note_if_few
from segue.core.errors import AssemblyError, CheckpointError, ConfigError, PluginError

if TYPE_CHECKING:
    from segue.core.config import PipelineConfig
    from segue.evaluation.representations import Representation

PARTS = ("semantic_tokenizer", "codec")
FEATURES = "features"
OfOption = Annotated[
    list[str] | None,
    typer.Option(help="semantic_tokenizer, codec, features, or several. Default: all there are."),
]
LevelsOption = Annotated[
    list[str] | None,
    typer.Option(help="Numbers of codec levels, such as 1,2. Default: 1 and all."),
]


@with_groups
def semantic(
    chosen: Chosen,
    data: Annotated[
        Path,
        typer.Option("--data", help="CSV: path, label, speaker [start, end, context, split]."),
    ],
    of: OfOption = None,
    levels: LevelsOption = None,
    split: SplitOption = "valid",
    where: Annotated[
        list[str] | None,
        typer.Option("--where", help="Rows with column=value only. May be repeated."),
    ] = None,
    per_group: Annotated[
        int, typer.Option(min=1, help="Most items of one label, speaker and context.")
    ] = 10,
    output: ReportOption = None,
    json: JsonOption = False,
) -> None:
    """Measure ABX errors within and across speakers of tokens, their vectors, and MFCC."""
    check_report(output)
    from segue.evaluation.semantic import evaluate_semantic
    from segue.evaluation.subjects import load_items, thinned

    found = load_items(data, checked_split(split), conditions(where or []))
    config = chosen.config()
    measured, left_out = _representations(config, chosen.device, of, levels)
    with progress_bars(json) as progress:
        figures = evaluate_semantic(thinned(found, per_group), measured, progress)
    report = {
        "subject": "semantic",
        **_described(config, data, split, left_out),
        "where": where or [],
        **figures,
    }
    finish(report, "representation", figures["representations"], output, json)


@dataclass(frozen=True)
class ChosenPiano(Chosen):
    """As ``Chosen``, with the piano pipeline as the default."""

    domain: DomainOption = "piano"

    @property
    def source(self) -> str:
        return self.pipeline or chosen_source(self.domain, None, "--pipeline")


@with_groups
def pitches(
    on: HeldOut,
    midi: Annotated[Path, typer.Option("--midi", help="Folder of the MIDI files they came from.")],
    chosen: ChosenPiano,
    of: OfOption = None,
    seconds: Annotated[
        float, typer.Option(min=1, max=3600, help="Used of each recording.")
    ] = 120.0,
    json: JsonOption = False,
) -> None:
    """Measure how well tokens of rendered scores reveal which pitch classes sound."""
    check_report(on.output)
    from segue.evaluation.pitches import evaluate_pitches, find_scores

    scores = find_scores(midi)
    recordings, config = held_out(on.data, on.items, on.split), chosen.config()
    measured, left_out = _representations(config, chosen.device, of, None)
    measured = [one for one in measured if one.vocabulary is not None]
    if not measured:
        raise ConfigError("--of", "names no tokens", "name semantic_tokenizer or codec")
    with progress_bars(json) as progress:
        figures = evaluate_pitches(recordings, scores, measured, seconds=seconds, progress=progress)
    report = {"subject": "pitches", **_described(config, on.data, on.split, left_out), **figures}
    reason = "they have no MIDI file, or cannot be read with it"
    note_if_few(recordings, on)
    finish(report, "representation", figures["representations"], on.output, json, reason)


def _representations(
    config: PipelineConfig, device: str, of: list[str] | None, levels: list[str] | None
) -> tuple[list[Representation], dict[str, str]]:
    """Build what is to be measured, and say why parts are left out."""
    from segue.evaluation.representations import plain_features

    wanted = listed(of or []) or [*config.parts, FEATURES]
    for name in wanted if of else ():
        if name not in (*PARTS, FEATURES):
            known = ", ".join((*PARTS, FEATURES))
            raise ConfigError("--of", f"{name!r} is unknown", f"use some of {known}")
    found: list[Representation] = []
    left_out: dict[str, str] = {}
    for part in (part for part in PARTS if part in wanted):
        try:
            found += _of_part(config, part, device, levels)
        except (AssemblyError, CheckpointError, PluginError) as error:
            if of:  # it was asked for
                raise
            left_out[part] = f"{error.problem}; {error.fix}"
    return found + (plain_features() if FEATURES in wanted else []), left_out


def _of_part(
    config: PipelineConfig, part: str, device: str, levels: list[str] | None
) -> list[Representation]:
    from segue.core.plugins import default_host
    from segue.evaluation.representations import of_tokenizer
    from segue.evaluation.subjects import load_tokenizer

    tokenizer = load_tokenizer(config, part, default_host(), device)
    total = tokenizer.spec.num_levels
    counts = sorted({1, total})
    if levels is not None and part == "codec":
        counts = whole_numbers(levels, "--levels")
    if not 1 <= counts[0] <= counts[-1] <= total:
        given = ",".join(levels or ())
        raise ConfigError("--levels", f"{given} is out of range", f"use 1 to {total}")
    name = "semantic" if part == "semantic_tokenizer" else "codec"
    return of_tokenizer(name, tokenizer, config.prompt.level, counts)


def _described(
    config: PipelineConfig, data: Path | str, split: str, left_out: dict[str, str]
) -> dict[str, Any]:
    return {
        "pipeline": config.name,
        **{part: config.parts[part].use for part in PARTS if part in config.parts},
        "data": str(data),
        "split": split,
        "left_out": left_out,
    }
