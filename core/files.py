"""Write files and directories so that a reader sees all of one or nothing. Imports no torch."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from segue.core.errors import OutputError

Made = TypeVar("Made")
MOST_TEXT = 1 << 24  # bytes of a description that is read into memory

FIX = "choose a place that can be written"
MOST_TRIES = 10  # to make something in a new folder
#: Why a directory cannot be renamed to a name that another directory or a file has.
TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EACCES)

_UMASK_LOCK = threading.Lock()


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that replaces it when the block ends well.

    Raises:
        OutputError: if the place cannot be written, or is a directory, device or pipe.
    """
    with _output_errors(path):
        _check_target(path)
        handle, name = _in_folder(
            path.parent,
            lambda: tempfile.mkstemp(prefix=".tmp-", suffix=path.suffix, dir=path.parent),
        )
        os.close(handle)
    temporary = Path(name)
    try:
        with _output_errors(path):
            yield temporary
            # On disk before it gets its name: a crash cannot leave an empty file there.
            _sync(temporary)
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory that becomes ``path`` when the block ends well.

    An existing ``path`` is replaced. A directory cannot be replaced in one step: if the process
    dies in between, the old one is still there under ``.old-``.
    """
    with _output_errors(path):
        name = _in_folder(
            path.parent,
            lambda: tempfile.mkdtemp(prefix=f".tmp-{path.name}-", dir=path.parent),
        )
    temporary = Path(name)
    try:
        with _output_errors(path):
            yield temporary
            for child in temporary.rglob("*"):
                _sync(child)
                # Libraries write private files: others may read a shared folder's weights.
                child.chmod((0o777 if child.is_dir() else 0o666) & ~_umask())
            temporary.chmod(0o777 & ~_umask())
            _take_the_place(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _take_the_place(new: Path, path: Path) -> None:
    """Rename a directory to ``path``, also where other processes do so at the same time."""
    olds: list[Path] = []
    for left in reversed(range(MOST_TRIES)):
        try:
            new.replace(path)
            break
        except OSError as error:
            if error.errno not in TAKEN or not left:
                raise
        olds.append(Path(tempfile.mkdtemp(prefix=f".old-{path.name}-", dir=path.parent)))
        with suppress(FileNotFoundError):  # another process has moved it
            path.replace(olds[-1] / path.name)
    for old in olds:
        shutil.rmtree(old)


def read_text(path: Path, most: int = MOST_TEXT) -> str:
    """Return the content of a UTF-8 text file.

    Raises:
        OSError, ValueError: if it cannot be read, or is longer than ``most`` bytes.
    """
    size = path.stat().st_size
    if size > most:
        raise ValueError(f"it has {size:,} bytes, at most {most:,} are read")
    return path.read_text(encoding="utf-8")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file atomically, keys in the order given."""
    text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    # File names that are not Unicode are escaped, as JSON allows.
    write_text(path, text.encode("utf-8", "backslashreplace").decode("utf-8"))


def as_json(data: Any) -> Any:
    """Return the data with null in place of NaN and infinity, which JSON lacks."""
    if isinstance(data, Mapping):
        return {key: as_json(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [as_json(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def add_line(path: Path, line: str) -> None:
    """Add a line to a text file, all of it or nothing, or raise ``OutputError``."""
    data = f"{line}\n".encode()
    with _output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            end = file.tell()
            if file.write(data) < len(data):
                file.truncate(end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def link_to(target: Path, link: Path) -> None:
    """Make a relative link, which still works when both are moved; keep a link that works."""
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.exists():
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(target.resolve(), link.parent.resolve()))


def check_writable(path: Path) -> None:
    """Raise ``OutputError`` now, before work is spent, if a file at ``path`` cannot be made."""
    with _output_errors(path):
        _check_target(path)
        there = next(parent for parent in path.parents if parent.exists())
        # Missing folders are tried under a name of this process: another one that starts at the
        # same time may use the real ones as soon as they exist.
        with tempfile.TemporaryDirectory(prefix=".tmp-", dir=there) as trial:
            probe = Path(trial) / path.relative_to(there)
            probe.parent.mkdir(parents=True, exist_ok=True)
            probe.touch()


def _in_folder(folder: Path, make: Callable[[], Made]) -> Made:
    """Make something in a folder, which is made too if it is missing."""
    for _ in range(MOST_TRIES):
        with suppress(FileNotFoundError):  # another process has taken the new folder away again
            folder.mkdir(parents=True, exist_ok=True)
            return make()
    return make()


def _check_target(path: Path) -> None:
    """Refuse to replace what is not a file: as root, `--output /dev/null` would remove it."""
    if path.is_dir():
        raise OutputError(str(path), "is a directory", "name a file inside it")
    if path.exists() and not path.is_file():
        raise OutputError(str(path), "is not a regular file", "name a file")


@contextmanager
def _output_errors(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` of the block into an ``OutputError``."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if isinstance(error, (FileExistsError, NotADirectoryError)):
            file = next((parent for parent in path.parents if parent.is_file()), None)
            reason = reason if file is None else f"{file} is a file"
        raise OutputError(str(path), f"cannot be written ({reason})", FIX) from error


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    with _UMASK_LOCK:  # it can only be read by setting it
        mask = os.umask(0)
        os.umask(mask)
    return mask


def native(path: Path) -> str | bytes:
    """Return a name that libsndfile can open even if it is not valid Unicode."""
    return os.fsencode(path) if os.name == "posix" else str(path)


def cache_directory() -> Path:
    """Return where indexes and fetched shards are kept: ``SEGUE_CACHE``, or ``~/.cache/segue``."""
    if chosen := os.environ.get("SEGUE_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "segue"
