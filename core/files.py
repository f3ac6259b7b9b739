"""Write files and directories so that a reader sees all of one or nothing. Imports no torch."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from segue.core.errors import OutputError

_UMASK_LOCK = threading.Lock()


@contextmanager
def atomic_path(path: Path, fix: str = "choose a place that can be written") -> Iterator[Path]:
    """A temporary path beside ``path`` that replaces it when the block ends well.

    Raises:
        OutputError: if the place cannot be written, or is a directory, device or pipe.
    """
    try:
        _check_target(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".tmp-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise _unwritable(path, error, fix) from error
    temporary = Path(name)
    try:
        yield temporary
        _sync(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise _unwritable(path, error, fix) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """A temporary directory that becomes ``path`` when the block ends well.

    An existing ``path`` is replaced; should the process die in between, the old directory is left
    under ``.old-`` or the new one is complete.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".tmp-{path.name}-", dir=path.parent))
    except OSError as error:
        raise _unwritable(path, error, "choose a place that can be written") from error
    try:
        yield temporary
        for child in temporary.rglob("*"):
            _sync(child)
        temporary.chmod(0o777 & ~_umask())
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".old-{path.name}-", dir=path.parent))
            path.replace(old / path.name)
            temporary.replace(path)
            shutil.rmtree(old)
        else:
            temporary.replace(path)
    except OSError as error:
        raise _unwritable(path, error, "choose a place that can be written") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def add_line(path: Path, line: str) -> None:
    """Add a line to a text file; all of it or nothing.

    Raises:
        OutputError: if it cannot be written.
    """
    data = f"{line}\n".encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            end = file.tell()
            if file.write(data) < len(data):
                file.truncate(end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise _unwritable(path, error, "choose a place that can be written") from error


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file atomically, keys in the order given."""
    text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    # Names of files that are no Unicode are escaped, as JSON allows.
    write_text(path, text.encode("utf-8", "backslashreplace").decode("utf-8"))


def as_json(data: Any) -> Any:
    """The data with null for what is no finite number: JSON has no NaN."""
    if isinstance(data, Mapping):
        return {key: as_json(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [as_json(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def link_to(target: Path, link: Path) -> None:
    """Make a link that still leads to ``target`` when both are moved together; one that leads
    somewhere stays."""
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.exists():
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(target.resolve(), link.parent.resolve()))


def check_writable(path: Path) -> None:
    """Raise ``OutputError`` now, before work is spent, if a file at ``path`` cannot be made."""
    probe = path.parent / ".segue-probe"
    new: list[Path] = []
    try:
        new += [parent for parent in path.parents if not parent.exists()]
        _check_target(path)
        with atomic_path(probe) as temporary:
            temporary.touch()
    except OSError as error:
        raise _unwritable(path, error, "choose a place that can be written") from error
    except OutputError as error:
        raise OutputError(str(path), error.problem, error.fix) from error
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
            for parent in new:
                parent.rmdir()


def _check_target(path: Path) -> None:
    if path.is_dir():
        raise OutputError(str(path), "is a directory", "name a file inside it")
    if path.exists() and not path.is_file():
        raise OutputError(str(path), "is no regular file", "name one, or a new file")


def _unwritable(path: Path, error: OSError, fix: str) -> OutputError:
    reason = error.strerror or str(error)
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        file = next((parent for parent in path.parents if parent.is_file()), None)
        reason = reason if file is None else f"{file} is a file"
    return OutputError(str(path), f"cannot be written ({reason})", fix)


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
