"""Clocks for benchmarks: medians, what the machine itself can do, and peak memory."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch

GEMM_SIZES = (1024, 1280, 1536, 1792, 2048)
READ_BYTES = 768 * 2**20  # far more than any cache holds

# Runs a command and prints its peak resident memory. A process inherits, when it starts, the peak
# of the process that started it: so this small one, without PyTorch, stands in between.
LAUNCHER = """
import json, os, sys
arguments = json.loads(sys.argv[1])
child = os.fork()
if child == 0:
    os.dup2(2, 1)
    try:
        os.execvp(arguments[0], arguments)
    except OSError as error:
        os.write(2, str(error).encode())
    os._exit(127)
_, status, usage = os.wait4(child, 0)
print(json.dumps([os.waitstatus_to_exitcode(status), usage.ru_maxrss]))
"""


def seconds(call: Callable[[], object]) -> float:
    """Return how long one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def median_seconds(call: Callable[[], object], repeats: int = 5, warmup: int = 1) -> float:
    """Return the median duration of ``repeats`` calls, after ``warmup`` uncounted ones."""
    for _ in range(warmup):
        call()
    return median(seconds(call) for _ in range(repeats))


def measured_gemm_rate(repeats: int = 5) -> float:
    """Measure fp32 matrix products in GFLOP/s with PyTorch's current number of threads.

    The best of several square sizes and ``repeats`` runs of each: a ceiling, not an average.
    """
    best = 0.0
    for size in GEMM_SIZES:
        left, right, out = torch.randn(3, size, size).unbind(0)

        def multiply(
            a: torch.Tensor = left, b: torch.Tensor = right, c: torch.Tensor = out
        ) -> None:
            torch.mm(a, b, out=c)

        multiply()
        fastest = min(seconds(multiply) for _ in range(repeats))
        best = max(best, 2 * size**3 / fastest)
    return best / 1e9


def measured_bandwidth(repeats: int = 5) -> float:
    """Measure bytes per second read from memory, not from caches, with all current threads.

    The best of summing an fp32 matrix and of multiplying it by a vector, which is what a
    transformer does with its weights when it generates one token at a time.
    """
    columns = 2048
    matrix = torch.ones(READ_BYTES // 4 // columns, columns)
    vector = torch.ones(columns)
    out = torch.empty(matrix.shape[0])
    calls: tuple[Callable[[], object], ...] = (
        matrix.sum,
        lambda: torch.mv(matrix, vector, out=out),
    )
    fastest = []
    with torch.inference_mode():
        for call in calls:
            call()
            fastest.append(min(seconds(call) for _ in range(repeats)))
    return matrix.numel() * matrix.element_size() / min(fastest)


def machine() -> dict[str, str | int]:
    """Describe the machine that figures are measured on."""
    return {
        "cpu": _cpu_model(),
        "cores": _cores(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _cores() -> int:
    """Return the number of cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_model() -> str:
    """Return the processor's name, with family and model where machines hide the rest."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    fields: dict[str, str] = {}
    for line in info.read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    name = fields.get("model name", platform.machine())
    if "cpu family" not in fields or "model" not in fields:
        return name
    return f"{name} (family {fields['cpu family']}, model {fields['model']})"


def peak_memory_mib(command: Sequence[str]) -> float:
    """Run ``command``, a program and its arguments; return its peak memory in MiB.

    Counts its main process alone. What it prints is dropped.

    Raises:
        RuntimeError: it failed; the message ends with what it wrote.
    """
    done = subprocess.run(
        [sys.executable, "-S", "-c", LAUNCHER, json.dumps(list(command))],
        capture_output=True,
        text=True,
        check=True,
    )
    code, peak = json.loads(done.stdout)
    if code:
        raise RuntimeError(f"{command[0]} ended with code {code}: {done.stderr[-2000:]}")
    return float(peak) / (2**20 if sys.platform == "darwin" else 2**10)
