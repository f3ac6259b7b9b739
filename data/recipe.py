"""Read tables and write manifests for data recipes."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from segue.core.errors import DataError
from segue.core.files import write_text
from segue.data.manifest import csv_table


def check_folder(source: Path, expected: str) -> None:
    """Raise ``DataError`` unless the source of a recipe is a folder."""
    if not source.is_dir():
        problem = "is a file" if source.exists() else "does not exist"
        raise DataError(str(source), problem, f"name a folder with {expected}")


def read_rows(path: Path, needs: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Read the rows of a CSV file that has the columns ``needs``, each with its line's number, or
    raise ``DataError``."""
    header = f"its first line must name the columns {', '.join(needs)}"
    if not path.is_file():
        fix = f"name a CSV file; {header}" if needs else "name a CSV file"
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(str(path), problem, fix)
    with csv_table(str(path)) as (columns, numbered):
        rows = list(numbered)
    missing = [column for column in needs if not rows or column not in columns]
    if missing:
        problem = f"lacks the column {missing[0]!r}" if rows else "lists no file"
        raise DataError(str(path), problem, header)
    for line, row in rows:
        empty = [column for column in needs if not row[column]]
        if empty:
            problem = f"the column {empty[0]!r} is empty"
            raise DataError(f"{path}, line {line}", problem, "complete the line")
    return rows


def write_manifest(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    """Write a manifest that ``load_recordings`` reads."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
    return path
