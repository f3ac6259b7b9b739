"""Copies of weights in another form, kept with their module until the weights change."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from segue.core.eight_bits import quantize

M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")

_MADE: WeakKeyDictionary[nn.Module, dict[str, tuple[object, list[Tensor], Any]]]
_MADE = WeakKeyDictionary()


def made_from(module: nn.Module, weights: Sequence[Tensor], form: str, make: Callable[[], T]) -> T:
    """Return ``make()``, made anew only if ``weights`` changed since the last call.

    Args:
        module: owner of the weights; the result is kept as long as it lives.
        weights: everything that ``make`` depends on.
        form: name of the result, for a module with several.
    """
    # Counters of in-place changes miss those through ``.data`` and in inference mode, so compare
    # two sums over every weight. That reads the weights twice, like two decoding steps.
    state = [
        (w.data_ptr(), w.dtype, w.shape, float(w.detach().sum()), float(w.detach().float().norm()))
        for w in weights
    ]
    kept = _MADE.setdefault(module, {})
    if form not in kept or kept[form][0] != state:
        # Keeping the sources alive means that no new tensor can get their address.
        kept[form] = state, [weight.detach() for weight in weights], make()
    made: T = kept[form][2]
    return made


def rounded(module: M) -> M:
    """Return a copy whose linear layers have the values of their eight-bit codes."""
    module = copy.deepcopy(module)
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.copy_(quantize(layer.weight).dense())
    return module
