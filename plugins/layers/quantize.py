"""Copies of weights in another form, kept with their module until the weights change."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from segue.core.eight_bits import EightBitMatrix, quantize

M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")

_MADE: WeakKeyDictionary[nn.Module, dict[str, tuple[object, list[Tensor], Any]]]
_MADE = WeakKeyDictionary()


def made_from(module: nn.Module, weights: Sequence[Tensor], form: str, make: Callable[[], T]) -> T:
    """Return ``make()``; call it again only if ``weights`` changed since the last call.

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
    return kept[form][2]


def eight_bits(weight: Float[Tensor, "R C"], lossy: bool) -> tuple[EightBitMatrix, bool] | None:
    """Return the codes of a matrix, and whether they are those of its transpose.

    Weights that were stored in eight bits, with groups along either dimension, have codes that
    stand for the same numbers. Others are rounded if ``lossy``; if not, the result is None.
    """
    for of_columns, matrix in enumerate((weight, weight.t())):
        # A few rows rule out almost all matrices that are not made of codes.
        if _stored_as_codes(matrix[:4]) and _stored_as_codes(matrix):
            return quantize(matrix), bool(of_columns)
    return (quantize(weight), False) if lossy else None


def _stored_as_codes(matrix: Float[Tensor, "R C"]) -> bool:
    # A scale is found again but for its last bit.
    return bool(((quantize(matrix).dense() - matrix).abs() <= 2**-22 * matrix.abs()).all())


def rounded(module: M) -> M:
    """Return a copy whose linear layers have the values of their eight-bit codes."""
    module = copy.deepcopy(module)
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.copy_(quantize(layer.weight).dense())
    return module
