"""Compare results: each comparison fails the running check and says where things differ."""

from __future__ import annotations

import copy
import datetime
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import numpy
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from segue.core.interfaces import Tokens
from segue.testing.check import require

M = TypeVar("M", bound=nn.Module)


def require_same_tokens(found: Tokens, wanted: Tokens, what: str, mismatches: float = 0.0) -> None:
    """Require equal lengths and equal valid frames, but for a share of ``mismatches``."""
    counts = found.lengths.tolist(), wanted.lengths.tolist()
    require(counts[0] == counts[1], f"{what}: {counts[0]} frames instead of {counts[1]}")
    for row, (have, want) in enumerate(zip(found.rows(), wanted.rows(), strict=True)):
        different = have != want
        if different.float().mean() > mismatches:
            level, frame = (int(i) for i in different.nonzero()[0])
            require(
                False,
                f"{what}: {int(different.sum())} of {different.numel()} tokens of row {row} "
                f"differ, first at level {level}, frame {frame}: "
                f"{int(have[level, frame])} instead of {int(want[level, frame])}",
            )


def require_close(found: Tensor, wanted: Tensor, what: str, atol: float) -> None:
    """Require equal shapes, and no distance above ``atol``; NaN equals nothing."""
    shapes = tuple(found.shape), tuple(wanted.shape)
    require(shapes[0] == shapes[1], f"{what}: shape {shapes[0]} instead of {shapes[1]}")
    gap = (found.detach().double() - wanted.detach().double()).abs().nan_to_num(torch.inf)
    wrong = (gap > atol).nonzero().tolist()
    if wrong:
        first = tuple(wrong[0])
        require(False, f"{what}: off by up to {float(gap.max()):.2g}, first at {first}")


def require_finite(tensor: Tensor, what: str) -> None:
    """Require that no value is NaN or infinite."""
    count = int((~torch.isfinite(tensor)).sum())
    require(count == 0, f"{what}: {count} of {tensor.numel()} values are NaN or infinite")


def require_legal(tokens: Tokens, codebook_size: int, what: str) -> None:
    """Require ids in int64, in ``[0, V)`` in every valid frame."""
    for name, tensor in (("ids", tokens.ids), ("lengths", tokens.lengths)):
        require(tensor.dtype == torch.int64, f"{what}: {name} are {tensor.dtype}, not int64")
    for row in tokens.rows():
        if row.numel():
            low, high = int(row.min()), int(row.max())
            legal, most = low >= 0 and high < codebook_size, codebook_size - 1
            require(legal, f"{what}: ids from {low} to {high}, allowed are 0 to {most}")


@contextmanager
def unchanged(**inputs: object) -> Iterator[None]:
    """Fail if the block writes to these tensors, or to those in these batches."""
    before = {name: [t.clone() for t in _tensors(value)] for name, value in inputs.items()}
    yield
    for name, copies in before.items():
        for old, new in zip(copies, _tensors(inputs[name]), strict=True):
            require(torch.equal(old, new), f"{name} is written to")


@contextmanager
def undisturbed(component: nn.Module | None = None) -> Iterator[None]:
    """Fail if the block changes the component's own state, or what the whole process shares:
    seeds, grad mode, and the like."""
    # Move on from a seed that was just set: setting the same one again would go unnoticed.
    torch.rand(()), random.random(), numpy.random.rand()
    before = _shared()
    state = {} if component is None else copy.deepcopy(component.state_dict())
    yield
    for name, value in state.items():
        same = torch.equal(component.state_dict()[name], value)  # type: ignore[union-attr]
        require(same, f"{name} of its state is written to")
    for what, value in _shared().items():
        same = torch.equal(value, before[what]) if what == _STATE else value == before[what]
        require(same, f"{what} changed, which the whole process shares")


_STATE = "torch's random state"
_SEED = 87_178_291  # that nobody else sets


def _shared() -> dict[str, Any]:
    return {
        _STATE: torch.get_rng_state(),
        "Python's random state": random.getstate(),
        "NumPy's random state": str(numpy.random.get_state(legacy=False)),
        "grad mode": torch.is_grad_enabled(),
        "the default dtype": torch.get_default_dtype(),
        "the number of threads": torch.get_num_threads(),
        "deterministic mode": torch.are_deterministic_algorithms_enabled(),
        "the default device": torch.get_default_device(),
        "the precision of matrix products": torch.get_float32_matmul_precision(),
        "anomaly detection": torch.is_anomaly_enabled(),
        "the handler of Ctrl-C": signal.getsignal(signal.SIGINT),
        "the working directory": Path.cwd(),
    }


_CLOCKS = ("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns")
_LATER = 86_413.37  # seconds; no multiple of a usual number


class _LaterDate(datetime.datetime):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> _LaterDate:
        return super().now(tz) + datetime.timedelta(seconds=_LATER)


@contextmanager
def a_day_later(component: object) -> Iterator[None]:
    """Let the clocks that a component's modules can read be a day ahead.

    For this thread alone: event loops that run beside would wait for tomorrow.
    """
    own = threading.get_ident()
    modules = {sys.modules.get(kind.__module__) for kind in type(component).__mro__}
    later: dict[int, object] = {id(datetime.datetime): _LaterDate}
    for name in _CLOCKS:
        clock, step = getattr(time, name), _LATER * (1e9 if name.endswith("ns") else 1)
        later[id(clock)] = lambda clock=clock, step=step: (
            clock() + type(clock())(step if threading.get_ident() == own else 0)
        )
    with ExitStack() as stack:
        for module in (time, datetime, *filter(None, modules)):
            for name, value in list(vars(module).items()):
                if id(value) in later:
                    stack.enter_context(patch.object(module, name, later[id(value)]))
        yield


@contextmanager
def seed_kept() -> Iterator[None]:
    """Fail if the block seeds torch: it may draw random numbers, as dropout does."""
    torch.manual_seed(_SEED)
    yield
    require(torch.initial_seed() == _SEED, "a training step seeds torch, for the whole process")


def _tensors(value: object) -> list[Tensor]:
    """Return all tensors in nested tuples and dataclasses."""
    if isinstance(value, Tensor):
        return [value]
    if is_dataclass(value):
        value = tuple(getattr(value, field.name) for field in fields(value))
    if isinstance(value, tuple):
        return [tensor for item in value for tensor in _tensors(item)]
    return []


def scrambled(module: M, scale: float = 0.05) -> M:
    """Return a copy with noise on every parameter: layers that start as zero would hide faults."""
    module = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.is_floating_point():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_((scale * noise).to(parameter))
    return module


def through_safetensors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict as it comes back from a checkpoint."""
    # Cloned, since safetensors refuses tensors that share storage.
    return load(save({key: value.cpu().clone().contiguous() for key, value in state.items()}))


def any_device() -> torch.device:
    """Return an accelerator if there is one: the CPU alone does not show a hard-coded device."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
