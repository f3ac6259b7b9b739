"""Labelled pieces of recordings: words, phones or whatever a table names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from segue.core.errors import DataError
from segue.data.recipe import read_rows


@dataclass(frozen=True)
class Item:
    """One labelled piece.

    Attributes:
        path: of the recording.
        label: what is said in it.
        speaker: who says it.
        context: what it stands between, such as a phone's neighbours; only items of the same
            context are compared.
        start: seconds.
        end: seconds; infinity for the recording's end.
    """

    path: Path
    label: str
    speaker: str
    context: str = ""
    start: float = 0.0
    end: float = math.inf


def load_items(
    table: Path, split: str | None = None, where: Mapping[str, str] | None = None
) -> list[Item]:
    """Items of a CSV file.

    Args:
        table: columns path (relative to the table), label and speaker; optionally start and end in
            seconds, context and split. Rows without a label are passed over.
        split: of which rows, where the table has that column; None for all.
        where: further columns and the value that they must have.

    Raises:
        DataError: if it cannot be read, a column is missing or nothing is left.
    """
    where = where or {}
    rows = read_rows(table, ("path",))
    missing = [column for column in ("label", "speaker", *where) if column not in rows[0]]
    if missing:
        raise DataError(str(table), f"lacks the column {missing[0]!r}", "name a table that has it")
    wanted = dict(where) | ({"split": split} if split and "split" in rows[0] else {})
    items = [
        _item(table, line, row)
        for line, row in enumerate(rows, start=2)
        if row["label"] and all(row[column] == value for column, value in wanted.items())
    ]
    if not items:
        asked = ", ".join(f"{column}={value}" for column, value in wanted.items()) or "a label"
        raise DataError(str(table), f"has no labelled row with {asked}", "ask for other rows")
    return items


def _item(table: Path, line: int, row: Mapping[str, str]) -> Item:
    place = f"{table}, line {line}"
    try:
        start, end = float(row.get("start") or 0), float(row.get("end") or math.inf)
    except ValueError as error:
        raise DataError(place, "start or end is no number", "give seconds") from error
    if not 0 <= start < end:
        raise DataError(place, f"{start:g} to {end:g} s is no piece", "let it end after it starts")
    if not row["speaker"]:
        raise DataError(place, "names no speaker", "fill the column 'speaker'")
    context = row.get("context") or ""
    return Item(table.parent / row["path"], row["label"], row["speaker"], context, start, end)


def thinned(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many items of each label, speaker and context, evenly through the table."""
    groups: dict[tuple[str, str, str], list[Item]] = {}
    for item in items:
        groups.setdefault((item.label, item.speaker, item.context), []).append(item)
    kept = []
    for group in groups.values():
        count = min(most, len(group))
        kept += [group[index * len(group) // count] for index in range(count)]
    return kept
