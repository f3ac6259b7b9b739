"""Keep what decoders print on standard error from the user's terminal. No torch."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

#: C's variable; what Python writes meanwhile, in any thread, goes to the file descriptor itself.
_NAME = "__stderrp" if sys.platform == "darwin" else "stderr"
_stream, _nowhere = ctypes.c_void_p(), None
try:
    _libc = ctypes.CDLL(None)
    _libc.fopen.restype = ctypes.c_void_p
    _stream = ctypes.c_void_p.in_dll(_libc, _NAME)
    _nowhere = _libc.fopen(os.devnull.encode(), b"w")
except (AttributeError, OSError, TypeError, ValueError):  # another C library: all is seen
    pass
_usual = _stream.value
_lock, _askers = threading.Lock(), 0


def _ask(change: int) -> None:
    global _askers
    with _lock:
        _askers += change
        _stream.value = _nowhere if _askers else _usual


def _forget() -> None:
    """Reset in a forked process, which has none of the threads that asked."""
    global _lock, _askers
    _lock, _askers, _stream.value = threading.Lock(), 0, _usual


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


@contextmanager
def quiet() -> Iterator[None]:
    """Hide what libraries in C print on standard error, such as libmpg123 of damaged files."""
    _ask(1)
    try:
        yield
    finally:
        _ask(-1)
