"""Add low-rank adapters to the matrices of a component, and merge them into plain weights.

Hu et al., LoRA, arXiv 2106.09685: a trained matrix W is kept, and W + (alpha / rank) B A is
computed in its place. Built on ``torch.nn.utils.parametrize`` rather than ``peft``: the adapter
belongs to the weight, so everything that reads ``layer.weight`` (the C kernel, fused attention)
sees the sum, module names stay, and a component can be saved as if it had no adapter.

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
    """The update of one matrix. It starts at nothing, as B is zero.

    Args:
        like: the matrix.
        rank: R.
        alpha: the update is scaled by ``alpha / rank``.
        dropout: share of input channels that the update leaves out in a training step. In the
            paper each position of a batch drops its own; here all positions drop the same.
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
            # Drop columns of A (or rows of B): the same as dropping those inputs of the update.
            # The matrix is computed once a step, before any input is known: only whole inputs can
            # be dropped.
            side = sides[self.inputs]
            kept = torch.rand(weight.shape[self.inputs], device=weight.device) >= self.dropout
            share = (kept / (1 - self.dropout)).to(side.dtype)
            sides[self.inputs] = side * (share if self.inputs else share[:, None])
        return self.summed(weight, *sides)

    def summed(self, weight: Tensor, up: Tensor, down: Tensor) -> Float[Tensor, "O I"]:
        """Return the matrix with its update."""
        return torch.addmm(weight, up, down, alpha=self.scale)


def input_side(module: nn.Module) -> int | None:
    """Return the dimension of ``module.weight`` that inputs lie along, or None if it has none."""
    if isinstance(module, nn.Linear):
        return 1
    # GPT-2's layers; known by name, so that transformers need not be imported.
    return 0 if type(module).__name__ == "Conv1D" and hasattr(module, "nf") else None


def add_adapters(
    component: nn.Module, layers: Iterable[str], rank: int, alpha: float, dropout: float
) -> None:
    """Add an adapter to the matrix of each named layer, in order, and freeze everything else."""
    component.requires_grad_(False)
    for name in layers:
        module = component.get_submodule(name)
        inputs = input_side(module)
        assert inputs is not None and isinstance(module.weight, Tensor)
        update = LowRank(module.weight.detach(), rank, alpha, dropout, inputs)
        parametrize.register_parametrization(module, "weight", update)
        update.train(module.training)


def adapters(component: nn.Module) -> dict[str, LowRank]:
    """Return every adapter under the name of its layer."""
    found = {}
    for name, module in component.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            update = module.parametrizations["weight"][0]
            if isinstance(update, LowRank):
                found[name] = update
    return found


def plain_state(component: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Merge adapters into their weights: return the state dict of a component without adapters.

    Args:
        component: with or without adapters.
        state: ``component.state_dict()``, or the same gathered from several ranks.
    """
    found = dict(state)
    for name, update in adapters(component).items():
        weight, up, down = (found.pop(f"{name}{_WEIGHT}{part}") for part in _PARTS)
        with torch.no_grad():
            found[f"{name}.weight"] = update.summed(weight, up, down)
    return found


def load_plain(component: nn.Module, plain: Mapping[str, Tensor]) -> None:
    """Load the state dict of a component without adapters; adapters start anew.

    Raises:
        RuntimeError: if it does not fit.
    """
    state = dict(plain)
    for name, update in adapters(component).items():
        if f"{name}.weight" in state:
            weight, up, down = (f"{name}{_WEIGHT}{part}" for part in _PARTS)
            state[weight] = state.pop(f"{name}.weight")
            # B is zero: the layer computes exactly the loaded weight until it is trained.
            state[up], state[down] = torch.zeros_like(update.up), update.down.detach()
    component.load_state_dict(state, strict=True)


def adapter_tensors(component: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return base matrices and both sides of every update, for an exact resume.

    ``plain_state`` holds only their sum, from which neither can be recovered.
    """
    keys = _adapter_keys(component)
    return {f"{ADAPTER}{key}": state[key].detach().cpu().contiguous().clone() for key in keys}


def load_adapters(component: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load what ``adapter_tensors`` returned; other tensors are left alone.

    Raises:
        KeyError, RuntimeError: if a tensor is missing or does not fit.
    """
    state = {key: tensors[f"{ADAPTER}{key}"] for key in _adapter_keys(component)}
    component.load_state_dict(state, strict=False)


def _adapter_keys(component: nn.Module) -> list[str]:
    return [f"{name}{_WEIGHT}{part}" for name in adapters(component) for part in _PARTS]
