"""Train a part of what a component holds: freeze tensors by name, or adapt matrices (LoRA)."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segue.core.checkpoint import load_tensors
from segue.core.config import LoraConfig, TrainingConfig
from segue.core.errors import CheckpointError, TrainingError
from segue.core.interfaces import Component, StageLM
from segue.core.lora import add_adapters, input_side

MOST_NAMED = 6
LEAST_TAKEN = 0.5  # of the weights, by what a training starts from
_KEPT = "_frozen_buffers"  # attribute of a component: what its frozen buffers hold


def adapt(component: Component, config: TrainingConfig, place: str, base: bool) -> None:
    """Freeze and adapt as the config says; what is left to train has ``requires_grad``.

    Args:
        component: with the weights that it starts from.
        config: of its training.
        place: of that config, for messages.
        base: whether the weights are trained ones.

    Raises:
        TrainingError: if a pattern matches nothing, nothing is left to train, or adapters cannot be
            had here.
    """
    frozen = _matched(_tensors(component), config.freeze, f"{place}.freeze", "tensor")
    if config.lora is not None:
        _add_lora(component, config.lora, frozen, f"{place}.lora", base)
    _freeze(component, frozen)
    if not any(parameter.requires_grad for parameter in component.parameters()):
        raise TrainingError(
            f"{place}.freeze", "leaves nothing to train", "freeze fewer tensors, or skip this part"
        )


def start_from(component: Component, directory: Path, place: str) -> list[str]:
    """Take the tensors of a checkpoint that have the name and the shape of one here.

    Args:
        component: with random weights.
        directory: a checkpoint of a component of any kind.
        place: of the setting, for messages.

    Returns:
        Names of those that stay random.

    Raises:
        CheckpointError: if it cannot be read.
        TrainingError: if most of the component's weights would stay random.
    """
    state, found = component.state_dict(), load_tensors(directory)
    taken = {
        name: value
        for name, value in found.items()
        if name in state and state[name].shape == value.shape
    }
    learnt = {name: x.numel() for name, x in component.named_parameters() if x.requires_grad}
    share = sum(learnt[name] for name in taken if name in learnt) / sum(learnt.values())
    lacking = [name for name in state if name not in taken]
    if share < LEAST_TAKEN:
        first = next(name for name in lacking if name in learnt)
        raise TrainingError(
            place,
            f"{directory} has {share:.0%} of the weights: none that fits {first!r}, say",
            "name a checkpoint of the same width and depth, or leave this out",
        )
    component.load_state_dict(taken, strict=False)
    return lacking


def matches(name: str, pattern: str) -> bool:
    """Whether a dotted name, or a tail of it that begins after a dot, fits a glob pattern."""
    parts = name.split(".")
    tails = (".".join(parts[first:]) for first in range(len(parts)))
    return any(fnmatchcase(tail, pattern) for tail in tails)


def keep_frozen(component: nn.Module) -> None:
    """Put frozen buffers back as they were: training steps move codes and running statistics."""
    kept: dict[str, Tensor] = getattr(component, _KEPT, {})
    with torch.no_grad():
        for name, value in kept.items():
            component.get_buffer(name).copy_(value)


def check_same_adaptation(
    config: TrainingConfig, checkpoint: Path, trained: Any, part: str
) -> None:
    """Refuse to resume a run under other ``freeze`` or ``lora`` than it began with.

    Args:
        config: of the training now.
        checkpoint: that is to be resumed.
        trained: the config that it was written under, as JSON.
        part: that is trained.

    Raises:
        CheckpointError: if they differ.
    """
    now = config.model_dump(mode="json")
    for key, nothing in (("freeze", []), ("lora", None)):
        before: Any = trained.get(key, nothing) if isinstance(trained, dict) else nothing
        if before != now[key]:
            raise CheckpointError(
                str(checkpoint),
                f"was trained with {key} {json.dumps(before)}, {part} now has"
                f" {json.dumps(now[key])}",
                "restore it, or start another output directory from this checkpoint",
            )


def _tensors(component: nn.Module) -> list[str]:
    """Names of all parameters and of the buffers that are saved."""
    return list(component.state_dict())


def _matched(
    names: Sequence[str], patterns: Iterable[str], place: str, what: str
) -> dict[str, None]:
    """The names that some pattern fits, in their order; refused if one fits none."""
    found: dict[str, None] = {}
    for pattern in patterns:
        fitting = [name for name in names if matches(name, pattern)]
        if not fitting:
            near = ", ".join(_near(names, pattern))
            raise TrainingError(place, f"{pattern!r} fits no {what}", f"near it are {near}")
        found |= dict.fromkeys(fitting)
    return {name: None for name in names if name in found}


def _near(names: Sequence[str], pattern: str) -> list[str]:
    """Names like the pattern, or some of all if none is."""
    close = difflib.get_close_matches(pattern, names, MOST_NAMED, cutoff=0.5)
    if close:
        return close
    return [names[len(names) * i // MOST_NAMED] for i in range(min(MOST_NAMED, len(names)))]


def _freeze(component: nn.Module, frozen: Iterable[str]) -> None:
    """Frozen parameters get no gradient; frozen buffers are remembered for ``keep_frozen``."""
    parameters, buffers = dict(component.named_parameters()), dict(component.named_buffers())
    for name in frozen:
        if name in parameters:
            parameters[name].requires_grad_(False)
    kept = {name: buffers[name].detach().clone() for name in frozen if name in buffers}
    if kept:
        object.__setattr__(component, _KEPT, kept)


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
            "name the checkpoint that it starts from, or what to train beside the adapters"
            " (lora.also_train)",
        )
    also = _matched(_tensors(component), config.also_train, f"{place}.also_train", "tensor")
    layers = _layers(component, config, f"{place}.targets", {*frozen, *also})
    add_adapters(component, layers, config.rank, config.alpha, config.dropout)
    for name, parameter in component.named_parameters():
        if name in also:
            parameter.requires_grad_(True)


def _layers(component: Component, config: LoraConfig, place: str, taken: set[str]) -> list[str]:
    """The layers that are adapted: those named, or all whose matrix a low rank makes smaller."""
    every = {name: m for name, m in component.named_modules() if input_side(m) is not None}
    if config.targets is not None:
        chosen = list(_matched(list(every), config.targets, place, "layer"))
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
