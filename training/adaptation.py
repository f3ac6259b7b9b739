"""Train only some tensors of a component: freeze others by name, or adapt matrices (LoRA)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor, nn

from segue.core.checkpoint import load_tensors
from segue.core.config import LoraConfig, TrainingConfig
from segue.core.errors import TrainingError
from segue.core.interfaces import Component, StageLM
from segue.training.lora import add_adapters, input_side

MAX_SUGGESTIONS = 6
LEAST_SHARE = 0.5  # of the weights, that ``start_from`` must find
_FROZEN_BUFFERS = "_frozen_buffers"  # attribute of a component: values of its frozen buffers


def adapt(component: Component, config: TrainingConfig, place: str, base: bool) -> None:
    """Freeze tensors and add adapters as the config says; the rest has ``requires_grad``.

    Args:
        component: with the weights that it starts from.
        config: settings of its training.
        place: of these settings, for errors.
        base: whether the weights were trained before.

    Raises:
        TrainingError: if a pattern matches nothing, nothing is left to train, or the component
            cannot have adapters.
    """
    names = list(component.state_dict())
    frozen = _matched(names, config.freeze, f"{place}.freeze", "tensor")
    if config.lora is not None:
        _add_lora(component, config.lora, frozen, f"{place}.lora", base)
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
        component: with random weights.
        directory: a checkpoint of a component of any kind.
        place: of the setting, for errors.

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


def _add_lora(
    component: Component, config: LoraConfig, frozen: Iterable[str], place: str, base: bool
) -> None:
    if not isinstance(component, StageLM):
        problem = f"is for stage language models, not for {type(component).__name__}"
        raise TrainingError(place, problem, "leave it out, or use training.freeze")
    if getattr(component.config, "lora", None) is not None:
        problem = "is set, and so is options.lora, which adapts the same layers"
        raise TrainingError(place, problem, "leave one of the two out")
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
