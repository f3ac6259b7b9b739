"""List recordings from a folder, a manifest, lhotse, WebDataset, or several of these."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy
import yaml
from pydantic import Field

from segue.core.errors import DataError
from segue.core.options import Options
from segue.core.validation import validate
from segue.core.yaml_files import YAML_ERRORS, parse_yaml
from segue.data.audio_files import seconds_of
from segue.data.lhotse_source import is_shar, list_cuts, list_shar
from segue.data.manifest import (
    SUFFIXES,
    Note,
    is_audio,
    list_folder,
    list_manifest,
    manifest_columns,
)
from segue.data.places import PLACE_ERRORS, beside, exists, files_below, is_folder, read_text
from segue.data.recordings import (
    HELD_OUT,
    SPLITS,
    UNKNOWN,
    Recording,
    Recordings,
    RecordingsBuilder,
    Split,
    hold_out,
)
from segue.data.tars import expand, list_tars

Format = Literal["auto", "folder", "manifest", "lhotse", "shar", "webdataset"]

MEASURED_AT_ONCE = 256
THREADS = 8


class SourceConfig(Options):
    """One source of several."""

    source: str  # a path, relative to the file that names it, or a URL
    format: Format = "auto"  # ``auto`` recognises it by names
    # How often its recordings are drawn in relation to their length.
    weight: float = Field(default=1.0, gt=0, le=1000)
    # Split of all its recordings; by default its own column, else whole groups are held out.
    split: Split | None = None


class SourcesConfig(Options):
    """A YAML file that lists several sources."""

    sources: tuple[SourceConfig, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Grouping:
    """Rules for grouping recordings and holding groups out where the source leaves it open."""

    column: str | None = None  # of a manifest, to take as group
    level: int | None = None  # of the folders on the way to a file, 0 the first, to take as group
    held_out: float = HELD_OUT  # share of the groups


def read_recordings(source: Path | str) -> Recordings:
    """Return every recording of a source, of all splits.

    Args:
        source: a folder of audio (the folder a file lies in is its group); a CSV manifest; a lhotse
            CutSet or Shar directory; WebDataset tars, such as ``shards-{000..012}.tar``; a URL of
            any of these; or a YAML file of several (``SourcesConfig``).

    Raises:
        DataError: if the source does not exist or cannot be read.
    """
    problems: list[tuple[str, str]] = []
    found = measured(list_recordings(source, lambda *problem: problems.append(problem)))
    if problems:
        (place, problem), count = problems[0], len(problems)
        warnings.warn(
            f"{source}: left out {count}, first {place}: {problem}; `segue prepare` lists all",
            stacklevel=2,
        )
    return found


def load_recordings(source: Path | str, split: Split) -> Recordings:
    """Return the recordings of one split of a source; see ``read_recordings``.

    Raises:
        DataError: if the source cannot be read or holds nothing of that split.
    """
    return of_split(read_recordings(source), split, source)


def of_split(recordings: Recordings, split: Split, source: Path | str) -> Recordings:
    """Return the recordings of one split, or raise ``DataError`` if ``source`` has none."""
    chosen = recordings.of_split(split)
    if not len(chosen):
        raise DataError(
            str(source),
            f"holds no recording of the split {split!r}",
            f"add audio ({', '.join(sorted(SUFFIXES))}) or rows with split={split}",
        )
    return chosen


def list_recordings(source: Path | str, note: Note, grouping: Grouping | None = None) -> Recordings:
    """List recordings without opening their files; lengths that a source does not state stay
    unknown.

    Args:
        note: called with what a source lists but cannot be used.
    """
    grouping = grouping or Grouping()
    configs = _configs(str(source))
    builder, decided = RecordingsBuilder(), []
    for number, config in enumerate(configs):
        form = _format(config)
        says = form == "manifest" and "split" in manifest_columns(config.source)
        count = 0
        for recording in _listed(config, form, note, grouping):
            split = config.split or recording.split
            builder.add(replace(recording, split=split, source=number))
            count += 1
        decided.append(numpy.full(count, says or config.split is not None))
    table = builder.build([config.weight for config in configs])
    table = hold_out(table, grouping.held_out, ~numpy.concatenate(decided))
    _warn_of_overlap(table, source)
    return table


def _warn_of_overlap(table: Recordings, source: Path | str) -> None:
    """Warn of recordings and groups that are learnt from and held out."""
    group, valid = table.columns["group"], table.columns["split"] == SPLITS.index("valid")
    both = numpy.intersect1d(group[valid], group[~valid])
    shared = numpy.isin(group, both)
    held, learnt = (list(table.select(shared & some)) for some in (valid, ~valid))
    for kind, name_of in (("recordings", lambda r: r.place), ("groups", _stated_group)):
        names = sorted({*map(name_of, held)} & {*map(name_of, learnt)} - {""})
        if names:
            text = f"{source}: {len(names)} {kind} stand in both splits, first {names[0]}"
            warnings.warn(f"{text}: figures of held-out audio will flatter", stacklevel=3)
            return


def _stated_group(recording: Recording) -> str:
    """Return a recording's group, or "" where it only repeats the name of its file."""
    return "" if recording.group in (recording.path.stem, ".") else recording.group


def measured(recordings: Recordings) -> Recordings:
    """Measure the unknown lengths; a file that is not audio gets 0."""
    (unknown,) = numpy.nonzero(recordings.seconds == UNKNOWN)
    if not len(unknown):
        return recordings
    seconds = recordings.seconds.copy()
    with ThreadPoolExecutor(THREADS) as pool:
        for first in range(0, len(unknown), MEASURED_AT_ONCE):
            some = unknown[first : first + MEASURED_AT_ONCE]
            seconds[some] = list(pool.map(seconds_of, (recordings[int(i)] for i in some)))
    return recordings.replaced(seconds=seconds)


def _configs(source: str) -> list[SourceConfig]:
    if not source.endswith((".yaml", ".yml")):
        return [SourceConfig(source=source)]
    try:
        tree = parse_yaml(read_text(source))
    except FileNotFoundError as error:
        raise DataError(source, "does not exist", "name a YAML file of sources") from error
    except (*YAML_ERRORS, yaml.YAMLError, *PLACE_ERRORS) as error:
        raise DataError(source, f"is not valid YAML ({error})", "list sources in it") from error
    config = validate(SourcesConfig, tree, source)
    return [c.model_copy(update={"source": beside(source, c.source)}) for c in config.sources]


def _format(config: SourceConfig) -> Format:
    source = config.source
    if config.format != "auto":
        return config.format
    if source.endswith((".jsonl", ".jsonl.gz")):
        return "lhotse"
    if source.endswith((".tar", ".tgz", ".tar.gz")):
        return "webdataset"
    if not _there(source):
        fix = "name a folder of audio or a CSV manifest, lhotse cuts, tars or a YAML of sources"
        raise DataError(source, "does not exist", fix)
    if not is_folder(source):
        if is_audio(source):
            fix = "name the folder that it lies in, or a CSV manifest"
            raise DataError(source, "is one recording", fix)
        return "manifest"
    names = files_below(source)
    if is_shar(names):
        return "shar"
    return "webdataset" if any(name.endswith(".tar") for name in names) else "folder"


def _there(source: str) -> bool:
    try:
        return exists(source)
    except PLACE_ERRORS as error:
        raise DataError(source, f"cannot be reached ({error})", "check the address") from error


def _listed(
    config: SourceConfig, form: Format, note: Note, grouping: Grouping
) -> Iterator[Recording]:
    source = config.source
    if form == "folder":
        return list_folder(source, note, grouping.level)
    if form == "manifest":
        return list_manifest(source, grouping.column)
    if form == "lhotse":
        return list_cuts(source, note)
    if form == "shar":
        return list_shar(source, note)
    return list_tars(_tars(source), note)


def _tars(source: str) -> list[str]:
    """Return the tars that a pattern or folder means, or raise ``DataError`` if one is missing."""
    if not source.endswith(".tar") and _there(source) and is_folder(source):
        return [name for name in files_below(source) if name.endswith(".tar")]
    names = expand(source)
    missing = next((name for name in names if not _there(name)), None)
    if missing is not None:
        raise DataError(missing, "does not exist", "check the pattern of the tars")
    return names
