"""Low-rank adapters on the matrices of a component, and the plain weights that they amount to.

Hu et al., LoRA, arXiv 2106.09685: a matrix W stays as it was trained, and W + (alpha / rank) B A is
computed in its place. Written here, on ``torch.nn.utils.parametrize``, rather than through
``peft.inject_adapter_in_model``: an adapter then belongs to the weight, so that whatever reads
``layer.weight`` (the C kernel, fused attention) sees the sum, module names stay as they are, and
the component can be saved as if it had no adapter.

Shape legend: O rows and I columns of a matrix, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

ADAPTER = "adapter."  # begins the names of tensors that only a run with adapters needs
_WEIGHT = ".parametrizations.weight."
_PARTS = ("original", "0.up", "0.down")


class LowRank(nn.Module):
    """The update of one matrix; nothing at first, as B is zero.

    Args:
        like: the matrix.
        rank: R.
        alpha: the update is scaled by ``alpha / rank``.
        dropout: share of input channels that the update does without in a training step. In the
            paper each position of a batch drops its own; the adapter of a weight drops the same
            for all.
        inputs: the dimension of the matrix that its inputs lie along.
    """

    def __init__(self, like: Tensor, rank: int, alpha: float, dropout: float, inputs: int) -> None:
        super().__init__()
        self.scale, self.dropout, self.inputs = alpha / rank, dropout, inputs
        self.down = nn.Parameter(like.new_empty(rank, like.shape[1]))
        self.up = nn.Parameter(like.new_zeros(like.shape[0], rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Float[Tensor, "O I"]) -> Float[Tensor, "O I"]:
        sides: list[Tensor] = [self.up, self.down]
        if self.training and self.dropout:
            side = sides[self.inputs]
            kept = torch.rand(weight.shape[self.inputs], device=weight.device) >= self.dropout
            share = (kept / (1 - self.dropout)).to(side.dtype)
            sides[self.inputs] = side * (share if self.inputs else share[:, None])
        return self.summed(weight, *sides)

    def summed(self, weight: Tensor, up: Tensor, down: Tensor) -> Float[Tensor, "O I"]:
        """The matrix with its update."""
        return torch.addmm(weight, up, down, alpha=self.scale)


def input_side(module: nn.Module) -> int | None:
    """The dimension of ``module.weight`` that inputs lie along; None if it has no such matrix."""
    if isinstance(module, nn.Linear):
        return 1
    # GPT-2's layers in transformers, which is not imported for it.
    return 0 if type(module).__name__ == "Conv1D" and hasattr(module, "nf") else None


def add_adapters(
    component: nn.Module, layers: Iterable[str], rank: int, alpha: float, dropout: float
) -> None:
    """Give the matrix of each named layer an adapter and freeze all else.

    Random numbers are taken from the global state, layer by layer.
    """
    component.requires_grad_(False)
    for name in layers:
        module = component.get_submodule(name)
        inputs = input_side(module)
        assert inputs is not None and isinstance(module.weight, Tensor)
        update = LowRank(module.weight.detach(), rank, alpha, dropout, inputs)
        parametrize.register_parametrization(module, "weight", update)
        update.train(module.training)


def adapters(component: nn.Module) -> dict[str, LowRank]:
    """Every adapter, by the name of its layer."""
    found = {}
    for name, module in component.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            update = module.parametrizations["weight"][0]
            if isinstance(update, LowRank):
                found[name] = update
    return found


def plain_state(component: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict as that of the component without adapters: their updates are added.

    Args:
        component: with or without adapters.
        state: ``component.state_dict()``, or as much gathered from several ranks.
    """
    found = dict(state)
    for name, update in adapters(component).items():
        weight, up, down = (found.pop(f"{name}{_WEIGHT}{part}") for part in _PARTS)
        with torch.no_grad():
            found[f"{name}.weight"] = update.summed(weight, up, down)
    return found


def load_plain(component: nn.Module, plain: Mapping[str, Tensor]) -> None:
    """Load what ``plain_state`` gave, or a component without adapters: updates start anew.

    Raises:
        RuntimeError: if it does not fit.
    """
    state = dict(plain)
    for name, update in adapters(component).items():
        if f"{name}.weight" in state:
            weight, up, down = (f"{name}{_WEIGHT}{part}" for part in _PARTS)
            state[weight] = state.pop(f"{name}.weight")
            state[up], state[down] = torch.zeros_like(update.up), update.down.detach()
    component.load_state_dict(state, strict=True)


def adapter_tensors(component: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What ``plain_state`` does not tell: base matrices and both sides of every update.

    A run that is resumed needs them to go on as if it had not been stopped: neither the base nor
    the update can be had from their sum.
    """
    keys = _keys(component)
    return {f"{ADAPTER}{key}": state[key].detach().cpu().contiguous().clone() for key in keys}


def load_adapters(component: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Take up what ``adapter_tensors`` gave; other tensors are left alone.

    Raises:
        KeyError, RuntimeError: if a tensor is missing or does not fit.
    """
    state = {key: tensors[f"{ADAPTER}{key}"] for key in _keys(component)}
    component.load_state_dict(state, strict=False)


def _keys(component: nn.Module) -> list[str]:
    """Names of the tensors of all adapters."""
    return [f"{name}{_WEIGHT}{part}" for name in adapters(component) for part in _PARTS]
