"""Compile the kernel once per machine and load it."""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

from segue.core.files import cache_directory

SOURCE = Path(__file__).with_name("kernel.c")
#: Not -ffast-math: it changes results and, when linking, makes the whole process flush denormal
#: numbers to zero. With partial redundancy elimination, GCC spills the sums of a block of products.
FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-fno-tree-pre", "-shared", "-fPIC")
#: Tried in this order: threads if the compiler has OpenMP, else one thread.
OPENMP = (("-fopenmp",), ("-fopenmp-simd",), ())
#: How different compilers are asked to use all instructions of this processor.
PROCESSOR = (("-march=native",), ("-mcpu=native",), ())


class KernelError(RuntimeError):
    """The kernel cannot be used here; the message says why."""


def library() -> ctypes.CDLL:
    """Return the compiled kernel.

    The first call on a machine compiles it (about two seconds) into ``SEGUE_CACHE``, by default
    ``~/.cache/segue``. Where the process already has a libgomp, as with PyTorch on Linux, the
    kernel shares its threads.

    Raises:
        KernelError: if there is no C compiler or it cannot compile or load the kernel.
    """
    found = _found()
    if isinstance(found, KernelError):
        raise found
    return found


def available() -> bool:
    """Return whether the kernel can be used; compile it if that was not done yet."""
    return not isinstance(_found(), KernelError)


@cache  # errors too: a process tries only once
def _found() -> ctypes.CDLL | KernelError:
    try:
        return _loaded()
    except KernelError as error:
        return error
    except (OSError, RuntimeError) as error:
        return KernelError(f"it cannot be compiled or loaded ({error})")


def _loaded() -> ctypes.CDLL:
    if os.environ.get("SEGUE_NATIVE") == "0":
        raise KernelError("SEGUE_NATIVE=0 turns the native kernel off")
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        raise KernelError("there is no C compiler (cc, gcc or clang)")
    loaded = ctypes.CDLL(str(_compiled(compiler)))
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    loaded.scratch_floats.argtypes, loaded.scratch_floats.restype = (pointer,), integer
    loaded.step.argtypes = (pointer, pointer, pointer, pointer, pointer, integer, pointer)
    loaded.linear.argtypes = (pointer, integer, pointer, pointer, integer, integer)
    loaded.draw.argtypes = (
        pointer, pointer, integer, integer, pointer, integer, pointer, pointer, integer, pointer,
    )  # fmt: skip
    loaded.step.restype, loaded.draw.restype, loaded.linear.restype = None, None, ctypes.c_int
    return loaded


def _compiled(compiler: str) -> Path:
    """Return the shared library for this source, compiler and processor."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    sources = [path.read_text() for path in sorted(SOURCE.parent.glob("*.[ch]"))]
    key = [*sources, version.stdout, *FLAGS, _processor()]
    digest = hashlib.sha256("\n".join(key).encode()).hexdigest()[:16]
    failures = []
    for directory in _directories():
        path = directory / f"kernel-{digest}.so"
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not _is_private(directory, stat.S_ISDIR):
                failures.append(f"others may write to {directory}")
            elif path.exists() and _is_private(path, stat.S_ISREG):
                return path
            else:
                return _compile(compiler, path)
        except OSError as error:
            failures.append(str(error))
    raise KernelError(f"there is no directory for the compiled kernel ({'; '.join(failures)})")


def _compile(compiler: str, path: Path) -> Path:
    handle, name = tempfile.mkstemp(suffix=".so", dir=path.parent)
    os.close(handle)
    try:
        for openmp, processor in itertools.product(OPENMP, PROCESSOR):
            command = [compiler, *FLAGS, *processor, *openmp, str(SOURCE), "-o", name, "-lm"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                # Renamed when complete: another process may compile it at the same time.
                Path(name).replace(path)
                return path
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise KernelError(f"{compiler} cannot compile it ({last})")
    finally:
        Path(name).unlink(missing_ok=True)


def _directories() -> Iterator[Path]:
    """Yield the places for the compiled kernel, the best first."""
    with suppress(RuntimeError):  # a user without a home
        yield cache_directory()
    user = os.getuid() if hasattr(os, "getuid") else "user"
    yield Path(tempfile.gettempdir()) / f"segue-{user}"


def _is_private(path: Path, of_type: Callable[[int], bool]) -> bool:
    """Return whether only this user can have written a file: it is code that will be run."""
    if not hasattr(os, "getuid"):
        return True
    found = path.lstat()  # a link could lead to a file of somebody else
    private = found.st_uid == os.getuid() and not found.st_mode & 0o022
    return private and of_type(found.st_mode)


def _processor() -> str:
    """Return all that the compiler's choice of instructions depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    names = ("flags", "Features", "CPU implementer", "CPU part", "model name")
    return "\n".join(sorted({line for line in lines if line.startswith(names)}))
