"""Minimal pairs of recordings: how often the right one is the likelier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from segue.core.audio import read_audio
from segue.core.errors import AudioError, DataError
from segue.core.pipeline import Pipeline
from segue.core.progress import Progress
from segue.data.recipe import read_rows
from segue.evaluation.first_stage import FirstStage, preferred
from segue.evaluation.statistics import grouped_summary


@dataclass(frozen=True)
class Pair:
    """Two recordings of which the first is right.

    Attributes:
        right, wrong: paths.
        group: what pairs have in common that are drawn together, such as a word in several voices.
        kind: of the contrast, such as a syntactic phenomenon; empty if there is but one.
    """

    right: Path
    wrong: Path
    group: str
    kind: str = ""


def read_pairs(table: Path, folder: Path | None = None) -> list[Pair]:
    """Minimal pairs in the form of the Zero Resource Speech Challenge (arXiv 2011.11588).

    Args:
        table: columns ``id``, ``filename`` (or ``path``) and ``correct`` (1 or 0), optionally
            ``voice`` and ``type``. Rows of one id and voice belong together: one is correct, each
            other one makes a pair with it. Names without a suffix get ``.wav``.
        folder: where the names start; by default the table's own.

    Raises:
        DataError: if a column is missing or rows make no pairs.
    """
    rows = read_rows(table, ("id", "correct"))
    column = next((name for name in ("filename", "path") if name in rows[0]), None)
    if column is None:
        raise DataError(str(table), "lacks the column 'filename'", "check the table")
    together: dict[tuple[str, str], list[dict[str, str]]] = {}
    for line, row in enumerate(rows, start=2):
        if row["correct"] not in ("0", "1"):
            problem = f"'correct' is {row['correct']!r}"
            raise DataError(f"{table}, line {line}", problem, "write 1 or 0")
        together.setdefault((row["id"], row.get("voice") or ""), []).append(row)
    root = folder or table.parent
    pairs = []
    for (identity, voice), members in together.items():
        right = [row for row in members if row["correct"] == "1"]
        if len(right) != 1 or len(members) < 2:
            label = f"{identity} {voice}".strip()
            problem = f"id {label} has {len(right)} correct rows of {len(members)}"
            raise DataError(str(table), problem, "give one that is correct and one that is not")
        for row in members:
            if row["correct"] == "0":
                wrong = _path(root, row[column])
                kind = row.get("type") or ""
                pairs.append(Pair(_path(root, right[0][column]), wrong, identity, kind))
    return pairs


def _path(root: Path, name: str) -> Path:
    path = root / name
    return path if path.suffix else path.with_suffix(".wav")


def evaluate_pairs(
    pipeline: Pipeline, pairs: Sequence[Pair], progress: Progress | None = None
) -> dict[str, Any]:
    """How often the right one of a pair is the likelier.

    Returns:
        ``pairs``, and ``pairs: <kind>`` where there are several kinds: ``by_mean`` compares nats
        per token, ``by_sum`` nats of the whole recording, which favours the shorter; equal ones
        count one half. ``margin`` is the difference of nats per token. Intervals are drawn over
        groups; ``unusable`` counts pairs that cannot be read.

    Raises:
        DataError: if none can be used.
    """
    stage = FirstStage(pipeline)
    rows, kept = [], []
    for done, pair in enumerate(pairs, start=1):
        try:
            right, wrong = (
                stage.score(stage.tokens(read_audio(p))) for p in (pair.right, pair.wrong)
            )
        except AudioError:
            continue
        finally:
            if progress is not None:
                progress("pairs", done, len(pairs))
        rows.append(_judged(right, wrong))
        kept.append(pair)
    if not rows:
        raise DataError("pairs", "none can be used", "check --pairs and --audio")
    found: dict[str, Any] = {"pairs": grouped_summary(rows, [pair.group for pair in kept])}
    found["pairs"]["unusable"] = len(pairs) - len(kept)
    kinds = sorted({pair.kind for pair in kept})
    for kind in kinds if len(kinds) > 1 else ():
        places = [place for place, pair in enumerate(kept) if pair.kind == kind]
        found[f"pairs: {kind or 'other'}"] = grouped_summary(
            [rows[place] for place in places], [kept[place].group for place in places]
        )
    return found


def _judged(right: Tensor, wrong: Tensor) -> dict[str, float]:
    """Figures of one pair, from the nats of every frame of both."""
    return {
        "by_mean": preferred(float(right.mean()), float(wrong.mean())),
        "by_sum": preferred(float(right.sum()), float(wrong.sum())),
        "margin": float(right.mean() - wrong.mean()),
    }
