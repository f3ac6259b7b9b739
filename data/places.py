"""Read bytes of local files and of anything that fsspec reaches: ``s3://``, ``https://``, ..."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from segue.core.errors import DataError

#: Errors of filesystems where something is missing, forbidden or out of reach.
PLACE_ERRORS = (OSError, ValueError, RuntimeError)


def is_url(where: str) -> bool:
    return "://" in where


def beside(file: str, name: str) -> str:
    """Resolve a path or URL that a file names: relative ones start where the file lies."""
    if is_url(name) or name.startswith("/"):
        return name
    return f"{file.rpartition('/')[0]}/{name}" if is_url(file) else str(Path(file).parent / name)


def filesystem(url: str) -> tuple[Any, str]:
    """Return the fsspec filesystem of a URL, and its own name for the place.

    Raises:
        DataError: if fsspec, or what it needs for that kind of URL, is not installed.
    """
    try:
        import fsspec
    except ImportError as error:
        raise DataError(url, "needs fsspec", 'pip install "segue[data]"') from error
    try:
        system, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise DataError(url, f"cannot be reached ({error})", "install what it names") from error
    return system, path


@contextmanager
def open_bytes(where: str) -> Iterator[IO[bytes]]:
    """Open a local file or URL for reading at any place in it."""
    if is_url(where):
        system, path = filesystem(where)
        with system.open(path, "rb") as file:
            yield file
    else:
        with open(os.fsencode(where), "rb") as file:  # noqa: PTH123  # names may be any bytes
            yield file


def read_range(where: str, offset: int, size: int) -> bytes:
    """Read ``size`` bytes from ``offset`` on; from a remote place only these."""
    if is_url(where):
        system, path = filesystem(where)
        return bytes(system.cat_file(path, start=offset, end=offset + size))
    with open_bytes(where) as file:
        file.seek(offset)
        return file.read(size)


def size_of(where: str) -> int:
    """Return the size of a file in bytes."""
    if is_url(where):
        system, path = filesystem(where)
        return int(system.size(path))
    return Path(where).stat().st_size


def read_text(where: str) -> str:
    """Read a UTF-8 text file, with or without a byte order mark."""
    with open_bytes(where) as file:
        return file.read().decode("utf-8-sig")


def exists(where: str) -> bool:
    if is_url(where):
        system, path = filesystem(where)
        return bool(system.exists(path))
    return Path(where).exists()


def is_folder(where: str) -> bool:
    if is_url(where):
        system, path = filesystem(where)
        return bool(system.isdir(path))
    return Path(where).is_dir()


def files_below(folder: str) -> list[str]:
    """List every file below a folder in order, without hidden ones; URLs for a remote folder."""
    if is_url(folder):
        system, path = filesystem(folder)
        base, cut = folder.rstrip("/"), len(path.rstrip("/"))
        below = sorted(name[cut:] for name in system.find(path))
        return [base + name for name in below if "/." not in f"/{name}"]
    found = []
    for directory, names, files in os.walk(folder):
        names[:] = [name for name in names if not name.startswith(".")]
        found += [os.path.join(directory, n) for n in files if not n.startswith(".")]  # noqa: PTH118
    return sorted(found)


def stamp(where: str) -> str:
    """Return a text that changes when a file does: its size and time, or its store's version."""
    if not is_url(where):
        status = os.stat(os.fsencode(where))  # noqa: PTH116
        return f"{status.st_size}-{status.st_mtime_ns}"
    system, path = filesystem(where)
    info = system.info(path)
    versions = (info.get(name) for name in ("ETag", "etag", "mtime", "LastModified", "created"))
    return f"{info.get('size')}-{next((v for v in versions if v is not None), '')}"


class Section(io.RawIOBase):
    """Present a stretch of an open file as a file of its own: one member of a tar."""

    def __init__(self, file: IO[bytes], offset: int, size: int) -> None:
        super().__init__()
        self._file, self._offset, self._size, self._at = file, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, to: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, base + to)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = max(0, min(len(buffer), self._size - self._at))
        self._file.seek(self._offset + self._at)
        data = self._file.read(wanted)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
