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

SOURCE = Path(__file__).with_name("kernel.c")
#: What -ffast-math would add besides changes results, and while linking makes the whole process
#: flush denormal numbers to zero.
FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
#: Tried in this order: threads where the compiler has OpenMP, else one thread.
OPENMP = (("-fopenmp",), ("-fopenmp-simd",), ())
#: How compilers are told to use all that this processor has.
PROCESSOR = (("-march=native",), ("-mcpu=native",), ())


class KernelError(RuntimeError):
    """The kernel cannot be used here; says why."""


def library() -> ctypes.CDLL:
    """The compiled kernel.

    Compiled on the first call on a machine (about two seconds) into ``SEGUE_CACHE``, by default
    ``~/.cache/segue``. Where the process has a libgomp, as with PyTorch on Linux, the kernel shares
    its threads.

    Raises:
        KernelError: if there is no C compiler or it cannot compile or load the kernel.
    """
    found = _found()
    if isinstance(found, KernelError):
        raise found
    return found


def available() -> bool:
    """Whether the kernel can be used; compiles it if that was not done yet."""
    return not isinstance(_found(), KernelError)


@cache
def _found() -> ctypes.CDLL | KernelError:
    """The kernel, or why there is none: looked for once in a process."""
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
    loaded.linear.argtypes = (pointer, pointer, pointer, integer, integer)
    loaded.step.restype = loaded.linear.restype = None
    return loaded


def _compiled(compiler: str) -> Path:
    """The shared library for this source, compiler and processor."""
    told = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    key = [SOURCE.read_text(), told.stdout, *FLAGS, _processor()]
    digest = hashlib.sha256("\n".join(key).encode()).hexdigest()[:16]
    failures = []
    for directory in _directories():
        path = directory / f"kernel-{digest}.so"
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not _is_ours(directory, stat.S_ISDIR):
                failures.append(f"others may write to {directory}")
            elif path.exists() and _is_ours(path, stat.S_ISREG):
                return path
            else:
                return _compile(compiler, path)
        except OSError as error:
            failures.append(str(error))
    raise KernelError(f"there is no place for the compiled kernel ({'; '.join(failures)})")


def _compile(compiler: str, path: Path) -> Path:
    handle, name = tempfile.mkstemp(suffix=".so", dir=path.parent)
    os.close(handle)
    try:
        for openmp, processor in itertools.product(OPENMP, PROCESSOR):
            command = [compiler, *FLAGS, *processor, *openmp, str(SOURCE), "-o", name, "-lm"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                # Whole or not at all, whoever else compiles it at the same time.
                Path(name).replace(path)
                return path
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise KernelError(f"{compiler} cannot compile it ({last})")
    finally:
        Path(name).unlink(missing_ok=True)


def _directories() -> Iterator[Path]:
    """Where the compiled kernel may lie, the best place first."""
    chosen = os.environ.get("SEGUE_CACHE")
    if chosen:
        yield Path(chosen)
    elif os.environ.get("XDG_CACHE_HOME"):
        yield Path(os.environ["XDG_CACHE_HOME"]) / "segue"
    else:
        with suppress(RuntimeError):  # a user without a home
            yield Path.home() / ".cache" / "segue"
    user = os.getuid() if hasattr(os, "getuid") else "user"
    yield Path(tempfile.gettempdir()) / f"segue-{user}"


def _is_ours(path: Path, of_type: Callable[[int], bool]) -> bool:
    """Whether nobody but this user can have put it there: it is code that will be run."""
    if not hasattr(os, "getuid"):
        return True
    found = path.lstat()  # not where a link leads
    private = found.st_uid == os.getuid() and not found.st_mode & 0o022
    return private and of_type(found.st_mode)


def _processor() -> str:
    """What the compiler's choice of instructions depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    names = ("flags", "Features", "CPU implementer", "CPU part", "model name")
    return "\n".join(sorted({line for line in lines if line.startswith(names)}))
