"""Describe tables, figures by row with the paper's claims, and write them as files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segue.core.files import write_text
from segue.findings.suite import Direction

if TYPE_CHECKING:
    from segue.findings.study import Study

Figures = Mapping[str, Any]  # estimates and plain numbers, by name
LEAST_GROUPS = 5


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, and whether it holds here."""

    text: str  # what is said
    # None where the intervals overlap, or rest on fewer than ``LEAST_GROUPS`` speakers or pieces.
    holds: bool | None

    def to_json(self) -> dict[str, Any]:
        return {"claim": self.text, "holds": self.holds}


@dataclass
class Finding:
    """One table."""

    rows: dict[str, Figures] = field(default_factory=dict)  # figures by row
    shown: tuple[str, ...] = ()  # figures that the readable table shows, in order
    claims: list[Claim] = field(default_factory=list)  # of the paper, judged
    notes: list[str] = field(default_factory=list)  # what else a reader must know
    commands: list[str] = field(default_factory=list)  # plain ones that give the same figures


@dataclass(frozen=True)
class Table:
    """The recipe of one finding."""

    about: str  # one sentence: what is shown
    uses: Sequence[str]  # fields of ``Settings`` that it depends on, beside those that all do
    make: Callable[[Study], Finding]  # raises ``InapplicableError`` where there is nothing to show


class InapplicableError(Exception):
    """Say why a table cannot be made for this domain or this data."""


def better(text: str, good: Figures | None, bad: Figures | None, direction: Direction) -> Claim:
    """Return whether one estimate is better than another: their intervals do not overlap.

    Args:
        good: said to be better; None or without an interval: not decided.
        bad: said to be worse.
        direction: which values are better, ``low`` or ``high``.
    """
    one, other = _interval(good), _interval(bad)
    if one is None or other is None:
        return Claim(text, None)
    below, beyond = one[1] < other[0], other[1] < one[0]
    holds, fails = (below, beyond) if direction == "low" else (beyond, below)
    return Claim(text, True if holds else False if fails else None)


def _interval(figure: Figures | None) -> tuple[float, float] | None:
    """Return the interval, or None if there is none or it rests on too few groups."""
    if figure is None or figure["low"] is None or figure["high"] is None:
        return None
    groups = figure.get("groups", figure.get("count", LEAST_GROUPS))  # or each item is one
    return None if groups < LEAST_GROUPS else (figure["low"], figure["high"])


def above(text: str, figure: Figures | None, value: float) -> Claim:
    """Return whether an estimate lies above a number."""
    return better(text, figure, {"low": value, "high": value}, "high")


RESULTS = "results.md"
VERDICTS = {True: "holds", False: "does not hold", None: "not decided"}


def read_report(path: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a report made earlier with the same settings, or None."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        same = report["settings"] == settings
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return dict(report) if same else None


def write_results(directory: Path, names: Iterable[str]) -> Path:
    """Write ``results.md`` with the tables that the directory holds."""
    reports = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in (directory / f"{name}.json" for name in names)
        if path.is_file()
    ]
    first = reports[0]["settings"] if reports else {}
    head = f"# The paper's findings: {first.get('domain', '')}\n"
    write_text(directory / RESULTS, "\n".join([head, *map(as_markdown, reports)]))
    return directory / RESULTS


def as_markdown(report: Mapping[str, Any]) -> str:
    """Format one table with its claims, notes and commands."""
    asked = report["settings"]
    chosen = ", ".join(f"{key} {value}" for key, value in asked.items() if key in SHOWN and value)
    made_by = f"{report['pipeline']}: {chosen}."
    lines = [f"## {report['table']}", "", report["about"], "", made_by, ""]
    shown = [key for key in report["shown"] if any(key in row for row in report["rows"].values())]
    lines += [_line(["", *shown, "items (groups)"]), _line(["---"] * (len(shown) + 2))]
    for name, row in report["rows"].items():
        lines.append(_line([name, *(_cell(row.get(key)) for key in shown), _counts(row, shown)]))
    lines.append("")
    lines += [f"- **{VERDICTS[claim['holds']]}**: {claim['claim']}" for claim in report["claims"]]
    lines += [f"- {note}" for note in report["notes"]]
    return "\n".join([*lines, "", "```console", *(f"$ {c}" for c in report["commands"]), "```", ""])


SHOWN = (
    "data", "items", "prompt_seconds", "seconds", "seed", "codec_steps", "steps", "overrides",
    "weights",
)  # fmt: skip


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(figure: Any) -> str:
    """Format a mean with its interval, or a plain number."""
    if isinstance(figure, (int, float)):
        return f"{figure:.4g}"
    if not figure or figure["mean"] is None:
        return "–"
    mean, low, high = (figure[key] for key in ("mean", "low", "high"))
    return f"{mean:.3f}" + ("" if low is None or high is None else f" [{low:.3f}, {high:.3f}]")


def _counts(row: Mapping[str, Any], shown: Iterable[str]) -> str:
    """Format the least and the most items and groups that the figures rest on."""
    found = [row[key] for key in shown if isinstance(row.get(key), dict) and row[key]["count"]]
    keys = ("count", "groups")
    ranges = [_range(figure[key] for figure in found if key in figure) for key in keys]
    return ranges[0] + (f" ({ranges[1]})" if ranges[1] else "")


def _range(values: Iterable[int]) -> str:
    found = sorted(set(values))
    return "–".join(str(value) for value in dict.fromkeys(found[:1] + found[-1:]))
