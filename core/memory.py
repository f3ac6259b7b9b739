"""Refuse what would take more memory than there is, before it is taken.

Configs, weights and recordings may come from strangers: a few bytes of options, a header or a
stream of silence can ask for terabytes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from segue.core.errors import ConfigError

MOST_TENSORS = 20_000  # of one component: options may ask for endless small layers
MEMORY_INFO = Path("/proc/meminfo")
CONTAINER = Path("/sys/fs/cgroup")
GIB = 2**30


def available_memory() -> int:
    """Return how many bytes this process can still take, within its container's limit."""
    found = [1 << 62]
    with suppress(OSError, ValueError, StopIteration):
        lines = MEMORY_INFO.read_text().splitlines()
        free = next(line for line in lines if line.startswith("MemAvailable"))
        found.append(int(free.split()[1]) * 1024)
    with suppress(OSError, ValueError):  # "max" is not a number: there is no limit
        limit = int((CONTAINER / "memory.max").read_text())
        found.append(max(0, limit - int((CONTAINER / "memory.current").read_text())))
    if len(found) == 1:
        with suppress(OSError, ValueError, AttributeError):  # Windows has no sysconf
            found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(found)


def shortage(needed: int) -> str | None:
    """Return a sentence if so many bytes are not available, else None."""
    free = available_memory()
    if needed <= free:
        return None
    return f"needs {needed / GIB:,.1f} GiB of memory, {free / GIB:,.1f} GiB are free"


def out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that memory is used up: PyTorch's may be any."""
    signs = ("out of memory", "can't allocate memory")
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in signs)


@contextmanager
def bounded_build(place: str) -> Iterator[None]:
    """Raise ``ConfigError`` in a block before it makes tensors that do not fit into memory."""
    fix = "correct its options: they ask for too much"
    free = available_memory()
    taken = made = 0

    def count(func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        nonlocal taken, made
        elements = _elements(func.__name__, args, kwargs)
        if elements:
            made += 1
            taken += elements * 4
            if taken > free:
                problem = f"needs over {taken / GIB:,.1f} GiB, {free / GIB:,.1f} GiB are free"
                raise ConfigError(place, problem, fix)
            if made > MOST_TENSORS:
                raise ConfigError(place, f"makes more than {MOST_TENSORS} tensors", fix)
        return func(*args, **kwargs)

    with _calls_by(count):
        yield


@contextmanager
def without_draws() -> Iterator[None]:
    """Build modules whose weights will be loaded: put zeros where parameters would be drawn.

    To draw them takes longer than to load what replaces them.
    """
    from torch.nn import Parameter

    def call(func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        tensor = args[0] if args else kwargs.get("tensor")
        # Only parameters: a buffer that is not saved keeps what is drawn for it.
        if func.__name__ in _DRAWN_IN_PLACE and isinstance(tensor, Parameter):
            tensor.detach().zero_()
            return tensor
        return func(*args, **kwargs)

    with _calls_by(call):
        yield


def _calls_by(call: Callable[[Callable[..., Any], Any, dict[str, Any]], Any]) -> Any:
    """Return a context in which ``call`` makes PyTorch's calls, given function and arguments."""
    from torch.overrides import TorchFunctionMode

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kw: Any = None) -> Any:
            return call(func, args, kw or {})

    return Mode()


#: Calls that make a tensor of a size, and calls that make one of as many elements as a number says.
_SIZED = {
    "empty", "zeros", "ones", "full", "rand", "randn", "randint", "normal", "empty_strided",
    "new_empty", "new_zeros", "new_ones", "new_full", "new_empty_strided", "repeat",
}  # fmt: skip
_DRAWN_IN_PLACE = {"kaiming_uniform_", "uniform_", "normal_"}
_COUNTED = {
    "linspace", "logspace", "randperm", "tril_indices", "triu_indices", "hann_window",
    "hamming_window", "bartlett_window", "blackman_window", "kaiser_window",
}  # fmt: skip


def _elements(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Return how many elements the tensor has that a call makes out of numbers, or a bit more.

    Calls that compute from tensors have 0: those were counted when they were made.
    """
    if str(kwargs.get("device")) == "meta":
        return 0
    values = [*args, *(kwargs[key] for key in ("size", "start", "end", "step", "n", "m", "steps")
                       if key in kwargs)]  # fmt: skip
    numbers = [n for n in values if isinstance(n, int | float) and math.isfinite(n)]
    whole = [n for n in numbers if isinstance(n, int)]
    if name in _SIZED:
        sizes = [list(value) for value in values if isinstance(value, list | tuple)]
        return abs(int(math.prod(sizes[0] if sizes else whole)))
    if name == "arange":
        first, last, step = (0, *numbers, 1) if len(numbers) < 2 else (*numbers, 1)[:3]
        return abs(math.ceil((last - first) / (step or 1)))
    if name == "eye":
        return math.prod(whole if len(whole) > 1 else whole * 2)
    return max(map(abs, whole), default=0) if name in _COUNTED else 0
