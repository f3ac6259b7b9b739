"""Share recordings, metrics and tables of figures among the `segue evaluate` commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import typer

from segue.apps.cli.options import HeldOut, listed
from segue.apps.cli.output import note, print_json, print_table, warn
from segue.core.errors import ConfigError, DataError, PluginError

if TYPE_CHECKING:
    from segue.core.plugins import PluginHost
    from segue.data.recordings import Recording, Split

SPLITS = ("train", "valid", "all")
COLUMNS = ("figure", "mean", "95 % interval", "lowest", "highest", "items")
MetricKind = Literal["metric", "continuation_metric"]


# --- recordings and reports -------------------------------------------------------------------


def checked_split(split: str) -> Split | None:
    """Return the split, or None for all."""
    if split not in SPLITS:
        raise ConfigError("--split", f"{split!r} is unknown", f"use one of {', '.join(SPLITS)}")
    return None if split == "all" else cast("Split", split)


def held_out(
    data: Path | str, items: int, split: str, least_seconds: float = 0.0
) -> list[Recording]:
    """Return recordings spread evenly over a split, without those known to be too short."""
    from segue.evaluation.subjects import spread_evenly

    try:
        return spread_evenly(data, items, checked_split(split), least_seconds)
    except DataError as error:
        if "of the split" in error.problem:
            error.fix += ", or take those of all splits: --split all"
        raise


def note_if_few(recordings: Sequence[Recording], asked: HeldOut) -> None:
    """Say that a split holds fewer recordings than ``--items``."""
    if len(recordings) >= asked.items:
        return
    where, fix = f"split {asked.split} of {asked.data}", "; --split all takes the others as well"
    if asked.split == "all":
        where, fix = str(asked.data), ""
    single = ", and a single one gives no interval" if len(recordings) == 1 else ""
    holds = f"holds {len(recordings)} of the {asked.items} recordings that --items asks for"
    note(f"{where} {holds}{single}{fix}")


def check_report(output: Path | None) -> None:
    """Refuse a report that cannot be written before any work is done."""
    from segue.core.files import check_writable

    if output is not None:
        check_writable(output)


def finish(
    report: Mapping[str, Any],
    subject: str,
    groups: Mapping[str, Any],
    output: Path | None,
    json: bool,
    unusable: str = "too short, or they cannot be read",
) -> None:
    """Write a report, then print it: JSON for a machine, or a table and remarks. Exit with 1 if
    every metric failed.

    Args:
        subject: heading of the table's first column.
        groups: figures by the rows of that column.
        output: a JSON file, or None.
        unusable: why recordings may be left out.
    """
    from segue.core.files import as_json, write_json

    if output is not None:
        write_json(output, as_json(report))
    rows = [
        (group, name, *_cells(figure))
        for group, columns in groups.items()
        for name, figure in columns.items()
        if isinstance(figure, dict) and "mean" in figure
    ]
    if json:
        print_json(report)
    else:
        _print(report, subject, rows, unusable)
    if report.get("failed") and not rows:
        raise typer.Exit(1)


def _print(
    report: Mapping[str, Any], subject: str, rows: Sequence[Sequence[str]], unusable: str
) -> None:
    print_table((subject, *COLUMNS), rows)
    for name, reason in report.get("failed", {}).items():
        warn("error:", f"metric {name} has no figures: {reason}", "bold red")
    for name, reason in report.get("left_out", {}).items():
        note(f"{name} was left out: {reason}")
    if report.get("unusable"):
        note(f"{report['unusable']} recordings were left out: {unusable}")


def _cells(figure: Mapping[str, Any]) -> tuple[str, ...]:
    if figure["mean"] is None:
        return ("–", "–", "–", "–", "0")
    low, high = _number(figure["low"]), _number(figure["high"])
    left_out = f" ({figure['left_out']} left out)" if figure.get("left_out") else ""
    return (
        _number(figure["mean"]),
        "–" if "–" in (low, high) else f"[{low}, {high}]",
        _number(figure["lowest"]),
        _number(figure["highest"]),
        f"{figure['count']}{left_out}",
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


# --- metrics ----------------------------------------------------------------------------------


def chosen_metrics(
    host: PluginHost, kind: MetricKind, wanted: list[str] | None, domain: str | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """Build the metrics to compute, and say why others are left out.

    Args:
        wanted: names with options, such as ``pesq.v1,visqol.v1:mode=audio``; None takes all that
            are installed, quick and for the domain.
        domain: of the audio, if it is known.

    Raises:
        SegueError: if a metric that is named cannot be built.
    """
    if wanted is not None:
        settings = [(text, *_with_options(text)) for text in listed(wanted)]
        if not settings:
            example = "log_mel.v1,pesq.v1" if kind == "metric" else "health.v1,speaker.v1"
            raise ConfigError("--metrics", "names no metric", f"write --metrics {example}")
        return {
            text: host.create(kind, name, options, place="--metrics")
            for text, name, options in settings
        }, {}
    chosen: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for name in dict.fromkeys(record.name for record in host.records(kind)):
        try:
            # The class first: a metric for another domain need not be built.
            domains = host.load(host.find(kind, name, name), name).domains
            if domain is not None and domains and domain not in domains:
                continue
            metric = host.create(kind, name, {}, place=name)
        except (PluginError, ConfigError) as error:
            left_out[name] = f"{error.problem}; {error.fix}"
            continue
        if metric.costly:
            left_out[name] = "is slow; name it in --metrics"
        else:
            chosen[name] = metric
    return chosen, left_out


def metrics_of_both_kinds(
    host: PluginHost, wanted: list[str] | None, domain: str | None
) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """Build metrics of pairs and metrics of continuations, and say why others are left out."""
    if wanted is None:
        pairs, first = chosen_metrics(host, "metric", None, domain)
        sets, second = chosen_metrics(host, "continuation_metric", None, domain)
        return pairs, sets, first | second
    known = {record.name for record in host.records("continuation_metric")}
    texts = listed(wanted)
    of_sets = [text for text in texts if text.partition(":")[0] in known]
    of_pairs = [text for text in texts if text not in of_sets]
    sets = chosen_metrics(host, "continuation_metric", of_sets)[0] if of_sets else {}
    if not of_pairs and of_sets:
        return {}, sets, {}
    return chosen_metrics(host, "metric", of_pairs)[0], sets, {}


def domain_of(host: PluginHost, name: str) -> str | None:
    """Return the domain that a pipeline's name begins with: ``piano`` for ``piano three-stage``."""
    domains = sorted((r.name for r in host.records("domain")), key=len, reverse=True)
    return next((domain for domain in domains if name.startswith(domain)), None)


def _with_options(text: str) -> tuple[str, dict[str, Any]]:
    """Split ``visqol.v1:mode=audio:lattice=true`` into a name and options."""
    from segue.core.yaml_files import YAML_ERRORS, parse_yaml

    name, *settings = text.split(":")
    options = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError("--metrics", f"{setting!r} sets nothing", "write NAME:option=value")
        try:
            options[key] = parse_yaml(value)
        except YAML_ERRORS as error:
            raise ConfigError("--metrics", f"{value!r} is not YAML", "quote the value") from error
    return name, options
