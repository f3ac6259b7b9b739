"""`segue evaluate resynthesis`: what is kept of recordings that go through tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

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
from segue.apps.cli.output import named, progress_bars
from segue.apps.cli.reports import held_out, show, written
from segue.core.errors import ConfigError

if TYPE_CHECKING:
    from segue.core.manager import PluginHost


def command(
    data: HeldOutOption,
    domain: DomainOption = None,
    pipeline: PipelineOption = None,
    of: Annotated[
        str | None,
        typer.Option(
            "--of",
            help="acoustic_generation, semantic, codec, recording, foreign. Default: all.",
        ),
    ] = None,
    items: ItemsOption = 50,
    split: SplitOption = "valid",
    metrics: Annotated[
        str | None,
        typer.Option(help="Of pairs or of continuations: phone_error.v1,speaker.v1. Default: all."),
    ] = None,
    least_seconds: Annotated[
        float, typer.Option(min=0, max=3600, help="Leave shorter recordings out.")
    ] = 0.0,
    seed: SeedOption = 0,
    output: ReportOption = None,
    overrides: SetOption = None,
    device: DeviceOption = "cpu",
    json: JsonOption = False,
) -> None:
    """Acoustic generation, semantic tokens alone and the codec: content, voice, sound."""
    with written(output) as write, named({"seed": "--seed"}):
        from segue.evaluation.resynthesis import WAYS, evaluate_resynthesis

        wanted = [part.strip() for part in of.split(",")] if of else list(WAYS)
        ways = [way for way in WAYS if way in wanted]
        if len(ways) != len(set(wanted)):
            raise ConfigError("--of", f"{of!r} names something else", f"use {', '.join(WAYS)}")
        loaded = load_pipeline(domain, pipeline, overrides, device)
        kind = domain_of(loaded.host, domain or loaded.config.name)
        pairs, sets, left_out = _of_both(loaded.host, metrics, kind)
        recordings = held_out(data, items, split, least_seconds)
        with progress_bars(json) as progress:
            figures = evaluate_resynthesis(
                loaded, recordings, ways, pairs, sets, seed=seed, progress=progress
            )
        report = {
            "subject": "resynthesis",
            "pipeline": loaded.config.name,
            "data": str(data),
            "split": split,
            "seed": seed,
            **figures,
            "left_out": left_out,
        }
        write(report)
    show(report, "way", figures["ways"], json)
    if not json:
        tell_left_out(report)


def _of_both(
    host: PluginHost, wanted: str | None, domain: str | None
) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """Metrics of pairs, metrics of continuations, and why others are not computed."""
    if wanted is None:
        pairs, first = chosen_metrics(host, "metric", None, domain)
        sets, second = chosen_metrics(host, "continuation_metric", None, domain)
        return pairs, sets, first | second
    known = {record.name for record in host.records("continuation_metric")}
    texts = [part.strip() for part in wanted.split(",") if part.strip()]
    of_sets = [text for text in texts if text.partition(":")[0] in known]
    of_pairs = [text for text in texts if text not in of_sets]
    sets = chosen_metrics(host, "continuation_metric", ",".join(of_sets))[0] if of_sets else {}
    if of_pairs or not of_sets:
        return chosen_metrics(host, "metric", ",".join(of_pairs))[0], sets, {}
    return {}, sets, {}
