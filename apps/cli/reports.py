"""What the `segue evaluate` commands share: which recordings, and how figures are told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from segue.apps.cli.output import print_json, print_table
from segue.core.errors import ConfigError

if TYPE_CHECKING:
    from segue.data.recordings import Recording, Split

SPLITS = ("train", "valid", "all")
COLUMNS = ("figure", "mean", "95 % interval", "lowest", "highest", "items")


@contextmanager
def written(output: Path | None) -> Iterator[Callable[[Any], None]]:
    """What writes a report, if one is wanted; refused before any work if it cannot be."""
    from segue.core.files import as_json, check_writable, write_json

    if output is not None:
        check_writable(output)

    def write(report: Any) -> None:
        if output is not None:
            write_json(output, as_json(report))

    yield write


def checked_split(split: str) -> Split | None:
    """None where all are meant."""
    if split not in SPLITS:
        raise ConfigError("--split", f"{split!r} is unknown", f"use one of {', '.join(SPLITS)}")
    return None if split == "all" else cast("Split", split)


def held_out(
    data: Path | str, items: int, split: str, least_seconds: float = 0.0
) -> list[Recording]:
    """Recordings spread evenly over a split, of those that are not known to be too short."""
    from segue.evaluation.held_out import spread_evenly

    return spread_evenly(data, items, checked_split(split), least_seconds)


def whole_numbers(text: str, option: str) -> list[int]:
    """Numbers that are separated by commas."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise ConfigError(option, f"{text!r} is no list of numbers", f"write {option} 1,2,4")
    return sorted({int(part) for part in parts})


def show(report: Mapping[str, Any], subject: str, groups: Mapping[str, Any], json: bool) -> None:
    """JSON for a machine, or a table of every estimate in ``groups``."""
    from segue.core.files import as_json

    if json:
        print_json(as_json(report))
        return
    rows = [
        (group, name, *_cells(figure))
        for group, columns in groups.items()
        for name, figure in columns.items()
        if isinstance(figure, dict) and "mean" in figure
    ]
    print_table((subject, *COLUMNS), rows)


def _cells(figure: Mapping[str, Any]) -> tuple[str, ...]:
    if figure["mean"] is None:
        return ("–", "–", "–", "–", "0")
    left_out = f" ({figure['left_out']} left out)" if figure.get("left_out") else ""
    known = figure["low"] is not None and figure["high"] is not None
    return (
        _number(figure["mean"]),
        f"[{_number(figure['low'])}, {_number(figure['high'])}]" if known else "–",
        _number(figure["lowest"]),
        _number(figure["highest"]),
        f"{figure['count']}{left_out}",
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
