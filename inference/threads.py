"""Choose how many threads PyTorch may use, and let idle ones sleep. Imports no torch.

OpenMP threads that spin while they wait make every other process slower, and are made slower
themselves: up to twenty times on a busy machine. Both settings are read when PyTorch loads.
"""

from __future__ import annotations

import math
import os
import re
import sys
from functools import lru_cache
from pathlib import Path

from segue.core.errors import ConfigError

VARIABLE = "SEGUE_THREADS"
MOST_THREADS = 1024  # OpenMP crashes where it cannot start as many as it is asked for
#: How often a waiting thread looks for work before it sleeps: for some ten microseconds. To wake it
#: takes longer, most of all in a virtual machine, and threads that decode meet six times a layer.
SPINS = 1000
CPU_MAX = Path("/sys/fs/cgroup/cpu.max")  # "quota period" of a container, in microseconds


def available_cores() -> int:
    """Return how many cores this process may use: its affinity, within its container's quota."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:  # macOS, Windows
        cores = os.cpu_count() or 1
    try:
        quota, period = CPU_MAX.read_text().split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or "max": no quota
        return cores


def prepare_threads(count: int | None = None, place: str = "--threads") -> None:
    """Set the thread count and let waiting threads sleep soon; call it before torch is imported.

    What the user's environment already says about OpenMP stays as it is.

    Args:
        count: threads to use; default: ``SEGUE_THREADS``, else the cores that there are.
        place: what states the count, for errors.

    Raises:
        ConfigError: if the count is not a whole number from 1 to ``MOST_THREADS``.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
    text = os.environ.get(VARIABLE, "") if count is None else str(count)
    if text and not (re.fullmatch("[0-9]{1,9}", text) and 0 < int(text) <= MOST_THREADS):
        fix = f"use 1 to {MOST_THREADS}; {available_cores()} cores can be used"
        place = VARIABLE if count is None else place
        raise ConfigError(place, f"{text!r} is not a number of threads", fix)
    if text:
        os.environ["OMP_NUM_THREADS"] = text
    else:
        os.environ.setdefault("OMP_NUM_THREADS", str(available_cores()))
    torch = sys.modules.get("torch")
    # Once told, MKL shares the smallest logarithms out to threads: do not tell it what it knows.
    if text and torch is not None and torch.get_num_threads() != int(text):
        torch.set_num_threads(int(text))


def use_threads(count: int | None) -> None:
    """Use the threads that a config asks for, unless ``--threads`` or ``SEGUE_THREADS`` does."""
    if count is not None and not os.environ.get(VARIABLE):
        prepare_threads(count, "threads")


def thread_troubles() -> list[str]:
    """Return what in the environment makes this process, or others beside it, slow."""
    found, cores = [], available_cores()
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if asked.isdigit() and int(asked) > cores:
        found.append(
            f"{asked} threads on {cores} cores that this process may use: unset OMP_NUM_THREADS "
            f"and {VARIABLE}, or set {VARIABLE}={cores}"
        )
    spins = os.environ.get("GOMP_SPINCOUNT", "0")
    long = not (spins.isdigit() and int(spins) <= SPINS)
    if os.environ.get("OMP_WAIT_POLICY", "").upper() == "ACTIVE" or long:
        found.append(
            "idle threads spin and slow down other work: unset OMP_WAIT_POLICY and GOMP_SPINCOUNT"
        )
    return found


@lru_cache(maxsize=1)  # once a process
def survive_forks() -> None:
    """Let processes that are forked off this one compute, on one thread each.

    A forked process has none of its parent's OpenMP threads, and would wait for them forever
    (PyTorch's documentation of multiprocessing, "CPU in subprocesses").
    """
    if hasattr(os, "register_at_fork"):  # not on Windows, which cannot fork
        os.register_at_fork(after_in_child=_compute_alone)


def _compute_alone() -> None:
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
