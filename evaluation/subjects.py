"""Choose what is evaluated: held-out recordings, labelled pieces of them, single tokenizers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from segue.core.assembly import resolve_part
from segue.core.audio import Audio
from segue.core.checkpoint import build_part, checked_device
from segue.core.config import PipelineConfig, PromptConfig
from segue.core.errors import AudioError, ConfigError, DataError
from segue.core.interfaces import Tokenizer
from segue.core.plugins import PluginHost
from segue.data.audio_files import read_recording
from segue.data.recipe import read_rows
from segue.data.recordings import UNKNOWN, Recording, Split, spread
from segue.data.sources import of_split, read_recordings

# --- recordings --------------------------------------------------------------------------------


def spread_evenly(
    data: Path | str, items: int, split: Split | None, least_seconds: float = 0.0
) -> list[Recording]:
    """Choose long enough recordings evenly over a split, or raise ``DataError``.

    Args:
        split: None takes all.
        least_seconds: shorter ones are left out.
    """
    recordings = read_recordings(data)
    if split is not None:
        recordings = of_split(recordings, split, data)
    long = [
        index
        for index in range(len(recordings) if least_seconds else 0)
        if recordings[index].seconds == UNKNOWN or recordings[index].seconds >= least_seconds
    ]
    if least_seconds and not long:
        raise DataError(str(data), f"no recording lasts {least_seconds:g} s", "ask for less")
    return [recordings[place] for place in spread(long or range(len(recordings)), items)]


def usable(recording: Recording, limits: PromptConfig) -> Audio | None:
    """Return a recording's first seconds, up to a prompt's limit, or None if it cannot be used."""
    try:
        audio = read_recording(recording)
    except AudioError:
        return None
    if audio.seconds < limits.min_seconds:
        return None
    return Audio(audio.wave[: round(limits.max_seconds * audio.sample_rate)], audio.sample_rate)


# --- labelled pieces ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Item:
    """Describe one labelled piece of a recording."""

    path: Path  # of the recording
    label: str  # what is said in it
    speaker: str  # who says it
    # Surroundings, such as a phone's neighbours; only items of the same context are
    # compared.
    context: str = ""
    start: float = 0.0  # seconds
    end: float = math.inf  # seconds; infinity for the recording's end


def load_items(
    table: Path, split: str | None = None, where: Mapping[str, str] | None = None
) -> list[Item]:
    """Read labelled pieces from a CSV file.

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
    missing = [column for column in ("label", "speaker", *where) if column not in rows[0][1]]
    if missing:
        raise DataError(str(table), f"lacks the column {missing[0]!r}", "name a table that has it")
    wanted = dict(where) | ({"split": split} if split and "split" in rows[0][1] else {})
    items = [
        _item(table, line, row)
        for line, row in rows
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
        raise DataError(place, "start or end is not a number", "give seconds") from error
    if not 0 <= start < end:
        raise DataError(place, f"{start:g} to {end:g} s is empty", "let it end after it starts")
    if not row["speaker"]:
        raise DataError(place, "names no speaker", "fill the column 'speaker'")
    context = row.get("context") or ""
    return Item(table.parent / row["path"], row["label"], row["speaker"], context, start, end)


def thinned(items: Sequence[Item], most: int) -> list[Item]:
    """Keep at most so many items of each label, speaker and context, evenly through the table."""
    groups: dict[tuple[str, str, str], list[Item]] = {}
    for item in items:
        groups.setdefault((item.label, item.speaker, item.context), []).append(item)
    return [item for group in groups.values() for item in spread(group, most)]


# --- tokenizers --------------------------------------------------------------------------------


def load_tokenizer(
    config: PipelineConfig, part: str, host: PluginHost, device: torch.device | str = "cpu"
) -> Tokenizer:
    """Load a single tokenizer; the stages and the other tokenizer are not touched.

    Raises:
        ConfigError: if the config lacks this part.
        SegueError: if it cannot be built or has no weights.
    """
    slot = config.slots.get(part)
    if slot is None:
        raise ConfigError(part, "this pipeline has none", "name another pipeline, or another part")
    device = checked_device(device)
    built = build_part(resolve_part(slot, host), host, allow_untrained=False)
    assert isinstance(built, Tokenizer)
    return built.to(device)
