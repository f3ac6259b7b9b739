"""Train only some tensors of a component: freeze others by name, or adapt matrices (LoRA).

LoRA is built on ``torch.nn.utils.parametrize`` rather than ``peft``: the adapter belongs to the
weight, so everything that reads ``layer.weight`` sees the sum. ``nn.MultiheadAttention``, the fast
path of ``nn.TransformerEncoderLayer`` and the C kernel would leave out a peft adapter in silence.
Names of modules stay, too, and a component can be saved as if it had no adapter. Hu et al., arXiv
2106.09685: a trained matrix W is kept, and W + (alpha / rank) B A is computed in its place.

Shape legend: O rows and I columns of a matrix, R rank.
"""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from segue.core.checkpoint import load_tensors
from segue.core.config import LoraConfig, TrainingConfig
from segue.core.errors import TrainingError
from segue.core.interfaces import Component, StageLM

ADAPTER = "adapter."  # begins the names of tensors that only a run with adapters needs
_WEIGHT = ".parametrizations.weight."
_PARTS = ("original", "0.up", "0.down")


class LowRank(nn.Module):
    """The update of one matrix. It starts at nothing, as B is zero.

    Args:
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
        state: ``component.state_dict()``, or the same gathered from several ranks.
    """
    found = dict(state)
    for name, update in adapters(component).items():
        weight, up, down = (found.pop(f"{name}{_WEIGHT}{part}") for part in _PARTS)
        with torch.no_grad():
            found[f"{name}.weight"] = update.summed(weight, up, down)
    return found


def load_plain(component: nn.Module, plain: Mapping[str, Tensor]) -> None:
    """Load a state dict without adapters, which are reset, or raise ``RuntimeError``."""
    state = dict(plain)
    for name, update in adapters(component).items():
        weight, up, down = (f"{name}{_WEIGHT}{part}" for part in _PARTS)
        if f"{name}.weight" in state:  # else the component brings an older name up to date
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
    """Load what ``adapter_tensors`` returned; leave other tensors alone.

    Raises:
        KeyError, RuntimeError: if a tensor is missing or does not fit.
    """
    state = {key: tensors[f"{ADAPTER}{key}"] for key in _adapter_keys(component)}
    component.load_state_dict(state, strict=False)


def _adapter_keys(component: nn.Module) -> list[str]:
    return [f"{name}{_WEIGHT}{part}" for name in adapters(component) for part in _PARTS]


MAX_SUGGESTIONS = 6
LEAST_SHARE = 0.5  # of the weights, that ``start_from`` must find
_FROZEN_BUFFERS = "_frozen_buffers"  # attribute of a component: values of its frozen buffers


def adapt(component: Component, config: TrainingConfig, place: str, base: bool) -> None:
    """Freeze tensors and add adapters as the config says; the rest has ``requires_grad``.

    Args:
        component: with the weights that it starts from.
        base: whether the weights were trained before.

    Raises:
        TrainingError: if a pattern matches nothing, nothing is left to train, or the component
            cannot have adapters.
    """
    names = list(component.state_dict())
    frozen = _matched(names, config.freeze, f"{place}.freeze", "tensor")
    if (lora := _asked_adapters(component, config, f"{place}.lora")) is not None:
        _add_lora(component, lora, frozen, f"{place}.lora", base)
    _freeze(component, frozen)
    parameters = list(component.parameters())
    # A component without any parameters learns in its buffers.
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        raise TrainingError(
            f"{place}.freeze", "leaves nothing to train", "freeze fewer tensors, or skip this part"
        )


def start_from(component: Component, directory: Path, place: str) -> list[str]:
    """Load the tensors of any checkpoint that have the name and the shape of one here.

    Args:
        directory: a checkpoint of a component of any kind.

    Returns:
        Names of the tensors that stay random.

    Raises:
        CheckpointError: if the checkpoint cannot be read.
        TrainingError: if most of the component's weights would stay random.
    """
    state, found = component.state_dict(), load_tensors(directory)
    taken = {
        name: value
        for name, value in found.items()
        if name in state and state[name].shape == value.shape
    }
    trained = {name: x.numel() for name, x in component.named_parameters() if x.requires_grad}
    # A network that clusters are fitted on is not trained at all.
    sizes = trained or {name: x.numel() for name, x in component.named_parameters()}
    share = sum(sizes[name] for name in taken if name in sizes) / max(1, sum(sizes.values()))
    if share < LEAST_SHARE:
        missing = next((name for name in sizes if name not in taken), "a weight")
        raise TrainingError(
            place,
            f"{directory} fits only {share:.0%} of the weights; {missing!r} does not fit, say",
            "name a checkpoint of the same width and depth, or leave this out",
        )
    component.load_state_dict(taken, strict=False)
    return [name for name in state if name not in taken]


def matches(name: str, pattern: str) -> bool:
    """Return whether a dotted name, or its end after some dot, matches a glob pattern."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[first:]), pattern) for first in range(len(parts)))


@torch.no_grad()
def restore_frozen_buffers(component: nn.Module) -> None:
    """Put frozen buffers back: training steps move codebooks and running statistics."""
    frozen: dict[str, Tensor] = getattr(component, _FROZEN_BUFFERS, {})
    for name, value in frozen.items():
        component.get_buffer(name).copy_(value)


def _matched(names: Sequence[str], patterns: Iterable[str], place: str, what: str) -> list[str]:
    """Return the names that match some pattern; refuse a pattern that matches none."""
    found: set[str] = set()
    for pattern in patterns:
        fitting = [name for name in names if matches(name, pattern)]
        if not fitting:
            near = difflib.get_close_matches(pattern, names, MAX_SUGGESTIONS, cutoff=0.5)
            if not near:  # some names from all over the component
                near = list(names[:: max(1, len(names) // MAX_SUGGESTIONS)])[:MAX_SUGGESTIONS]
            raise TrainingError(place, f"{pattern!r} fits no {what}", f"try {', '.join(near)}")
        found.update(fitting)
    return [name for name in names if name in found]


def _freeze(component: nn.Module, frozen: Iterable[str]) -> None:
    """Give frozen parameters no gradient; keep the values of frozen buffers."""
    parameters, buffers = dict(component.named_parameters()), dict(component.named_buffers())
    for name in frozen:
        if name in parameters:
            parameters[name].requires_grad_(False)
    # Buffers have no gradient to switch off: their values are put back after each step.
    kept = {name: buffers[name].detach().clone() for name in frozen if name in buffers}
    if kept:
        object.__setattr__(component, _FROZEN_BUFFERS, kept)


def _asked_adapters(component: Component, config: TrainingConfig, place: str) -> LoraConfig | None:
    older: LoraConfig | None = getattr(component.config, "older_lora", None)
    if config.lora is None and older is not None:
        warnings.warn(f"{place} replaces options.lora, which is deprecated", FutureWarning, 2)
    return config.lora or older


def _add_lora(
    component: Component, config: LoraConfig, frozen: Iterable[str], place: str, base: bool
) -> None:
    if not isinstance(component, StageLM):
        problem = f"is for stage language models, not for {type(component).__name__}"
        raise TrainingError(place, problem, "leave it out, or use training.freeze")
    if not (base or config.also_train):
        raise TrainingError(
            place,
            "would adapt random weights",
            "name the checkpoint to start from, or what to train beside the adapters"
            " (lora.also_train)",
        )
    names = list(component.state_dict())
    also = _matched(names, config.also_train, f"{place}.also_train", "tensor")
    layers = _layers(component, config, f"{place}.targets", {*frozen, *also})
    add_adapters(component, layers, config.rank, config.alpha, config.dropout)
    for name, parameter in component.named_parameters():
        if name in also:
            parameter.requires_grad_(True)


def _layers(component: Component, config: LoraConfig, place: str, taken: set[str]) -> list[str]:
    """Return the layers to adapt: those named, or all whose matrix is larger than the rank."""
    every = {name: m for name, m in component.named_modules() if input_side(m) is not None}
    if config.targets is not None:
        chosen = _matched(list(every), config.targets, place, "layer")
    else:
        chosen = [name for name, m in every.items() if min(m.weight.shape) > config.rank]
    chosen = [name for name in chosen if f"{name}.weight" not in taken]
    if not chosen:
        raise TrainingError(
            place,
            f"leave no layer to adapt at rank {config.rank}",
            "lower the rank, name targets, or freeze fewer tensors",
        )
    return chosen
