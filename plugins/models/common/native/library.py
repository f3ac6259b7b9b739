"""Compile the kernel once per machine and load it."""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).with_name("kernel.c")
#: Unlike -ffast-math these change nothing outside the kernel (that one, while linking, makes the
#: whole process flush denormal numbers to zero).
FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros",
         "-fassociative-math", "-freciprocal-math", "-shared", "-fPIC")  # fmt: skip
#: Tried in this order: threads where the compiler has OpenMP, else one thread.
OPENMP = (("-fopenmp",), ("-fopenmp-simd",), ())
#: How compilers are told to use all that this processor has.
PROCESSOR = (("-march=native",), ("-mcpu=native",), ())


class KernelError(RuntimeError):
    """The kernel cannot be used here; says why."""


@cache
def library() -> ctypes.CDLL:
    """The compiled kernel.

    Compiled on the first call on a machine (about two seconds) into ``SEGUE_CACHE``, by default
    ``~/.cache/segue``. Its OpenMP symbols are those of the process's libgomp, so it shares torch's
    threads.

    Raises:
        KernelError: if there is no C compiler or it cannot compile or load the kernel.
    """
    if os.environ.get("SEGUE_NATIVE") == "0":
        raise KernelError("SEGUE_NATIVE=0 turns the native kernel off")
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        raise KernelError("there is no C compiler (cc, gcc or clang)")
    path = _compiled(compiler)
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        raise KernelError(f"{path} cannot be loaded ({error})") from error
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    loaded.scratch_floats.argtypes, loaded.scratch_floats.restype = (pointer,), integer
    loaded.step.argtypes = (pointer, pointer, pointer, pointer, pointer, integer, pointer)
    loaded.linear.argtypes = (pointer, pointer, pointer, integer, integer)
    loaded.step.restype = loaded.linear.restype = None
    return loaded


def available() -> bool:
    """Whether the kernel can be used; compiles it if that was not done yet."""
    try:
        library()
    except KernelError:
        return False
    return True


def _compiled(compiler: str) -> Path:
    """The shared library for this source, compiler and processor."""
    told = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    key = [SOURCE.read_text(), told.stdout, *FLAGS, _processor()]
    digest = hashlib.sha256("\n".join(key).encode()).hexdigest()[:16]
    failure = ""
    for directory in (_cache_directory(), Path(tempfile.gettempdir()) / f"segue-{_user()}"):
        path = directory / f"kernel-{digest}.so"
        if path.is_file() and _is_ours(path):
            return path
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not _is_ours(directory):
                continue
            return _compile(compiler, path)
        except OSError as error:
            failure = str(error)
    raise KernelError(f"the compiled kernel cannot be written ({failure})")


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


def _cache_directory() -> Path:
    chosen = os.environ.get("SEGUE_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "segue"


def _user() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else "user"


def _is_ours(path: Path) -> bool:
    """Whether only this user can have put something there: it is code that will be run."""
    return not hasattr(os, "getuid") or path.stat().st_uid == os.getuid()


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next((line for line in lines if line.startswith("flags")), platform.machine())
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
