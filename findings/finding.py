"""Describe tables: figures by row, the paper's claims, and commands that make them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from segue.findings.suite import Direction

if TYPE_CHECKING:
    from segue.findings.study import Study

Figures = Mapping[str, Any]  # estimates and plain numbers, by name
LEAST_GROUPS = 5


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, and whether it holds here.

    Attributes:
        text: what is said.
        holds: None where the intervals overlap, or rest on fewer than ``LEAST_GROUPS`` speakers or
            pieces.
    """

    text: str
    holds: bool | None

    def to_json(self) -> dict[str, Any]:
        return {"claim": self.text, "holds": self.holds}


@dataclass
class Finding:
    """One table.

    Attributes:
        rows: figures by row.
        shown: figures that the readable table shows, in order.
        claims: of the paper, judged.
        notes: what else a reader must know.
        commands: plain ones that give the same figures.
    """

    rows: dict[str, Figures] = field(default_factory=dict)
    shown: tuple[str, ...] = ()
    claims: list[Claim] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Table:
    """The recipe of one finding.

    Attributes:
        about: one sentence: what is shown.
        uses: fields of ``Settings`` that it depends on, beside those that all do.
        make: raises ``InapplicableError`` where there is nothing to show.
    """

    about: str
    uses: Sequence[str]
    make: Callable[[Study], Finding]


class InapplicableError(Exception):
    """Say why a table cannot be made for this domain or this data."""


def better(text: str, good: Figures | None, bad: Figures | None, direction: Direction) -> Claim:
    """Return whether one estimate is better than another: their intervals do not overlap.

    Args:
        text: the claim.
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
