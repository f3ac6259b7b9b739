"""Hold all that changes while a part is trained: weights, optimizers, adversary, running means."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from segue.core.config import TrainingConfig
from segue.core.interfaces import Adversary, Component
from segue.training.adaptation import ADAPTER, adapter_tensors, adapters, load_adapters
from segue.training.engine import Engine
from segue.training.ranks import as_sharded, local, whole

# Prefixes of names in a checkpoint's trainer.safetensors. The component's optimizer has none.
ADVERSARY, ADVERSARY_OPTIMIZER = "adversary.weights.", "adversary.optimizer."
LAST, MEAN = "last.", "mean."  # weights, and their running means

WARM_UPDATES = 10  # the running mean of fewer updates than this reaches back less far


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Return the rate of a step: linear warm-up to the peak, then ``config.schedule``.

    ``inverse_sqrt`` follows Vaswani et al., arXiv 1706.03762, section 5.3, scaled to the peak.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    warm, after = max(1, config.warmup_steps), step - config.warmup_steps
    progress = min(1.0, after / max(1, config.steps - config.warmup_steps))
    factors = {
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        "linear": 1 - progress,
        "inverse_sqrt": math.sqrt(warm / (warm + after)),
        "constant": 1.0,
    }
    return config.learning_rate * factors[config.schedule]


def make_optimizer(module: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """Return the optimizer that the config names; vectors (biases, norms) are not decayed."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    hidden = hidden_matrices(module) if config.optimizer == "muon" else []
    taken = set(map(id, hidden))
    rest = [p for p in trainable if id(p) not in taken]
    groups = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": config.weight_decay},
        # Decay would pull norms to zero, where they silence their layer.
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas)
    if not hidden:
        return adam
    # Updates as large as AdamW's are: its rates and decays fit both (arXiv 2502.16982, eq. 4).
    muon = torch.optim.Muon(
        hidden, config.learning_rate, config.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    return Together(muon, adam)


def hidden_matrices(module: nn.Module) -> list[nn.Parameter]:
    """Return the trained weights of linear layers within repeated blocks."""
    lists = [part for part in module.modules() if isinstance(part, nn.ModuleList)]
    layers = {m: None for part in lists for m in part.modules() if isinstance(m, nn.Linear)}
    weights = [layer.weight for layer in layers]
    return [w for w in weights if isinstance(w, nn.Parameter) and w.requires_grad]


class Together(torch.optim.Optimizer):
    """Optimizers of different parameters as one, with one state to save."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Let each optimizer step."""
        start = 0
        for part in self.parts:
            stop = start + len(part.param_groups)
            # Loading a state replaces both: hand the current ones on.
            part.state, part.param_groups = self.state, self.param_groups[start:stop]
            part.step()
            start = stop


class RunningMean:
    """Exponential means of the trained parameters (Polyak and Juditsky, 1992).

    Buffers are left out: codebooks and statistics are running means already. A shard of a
    parameter has the shard of its mean.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self.means = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self) -> None:
        """Add the parameters as they are now."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (WARM_UPDATES + self.updates))
        for name, parameter in self.parameters.items():
            local(self.means[name]).lerp_(local(parameter.detach()), 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange parameters and means."""
        for name, parameter in self.parameters.items():
            # In place: optimizers and sharded modules hold these very tensors.
            here, there = local(parameter.detach()), local(self.means[name])
            before = here.clone()
            here.copy_(there)
            there.copy_(before)

    def tensors(self, keep: bool) -> dict[str, Tensor]:
        """Return parameters and means: a component's own file holds the means only."""
        found = {f"{LAST}{name}": whole(value, keep) for name, value in self.parameters.items()}
        return found | {f"{MEAN}{name}": whole(value, keep) for name, value in self.means.items()}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], updates: int) -> None:
        """Load what ``tensors`` returned; after a run without means, begin with the weights."""
        self.updates = updates
        for name, parameter in self.parameters.items():
            weight, mean = local(parameter.detach()), local(self.means[name])
            # The component was loaded with its means: put the weights themselves back.
            if f"{LAST}{name}" in tensors:
                weight.copy_(local(as_sharded(tensors[f"{LAST}{name}"], parameter)))
                mean.copy_(local(as_sharded(tensors[f"{MEAN}{name}"], parameter)))
            else:
                mean.copy_(weight)


@dataclass
class Learner:
    """A component with everything that its training changes."""

    component: Component  # the part that learns
    optimizer: torch.optim.Optimizer  # of the component
    adversary: Adversary | None = None  # what a codec is trained against, if anything
    adversary_optimizer: torch.optim.Optimizer | None = None  # of the adversary
    # Running means of the component's weights, if the config asks for them.
    mean: RunningMean | None = None
    scaler: Any = None  # of gradients in half precision, if there is one

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Give the component the running means within the block, if there are any."""
        if self.mean is not None:
            self.mean.swap()
        try:
            yield
        finally:
            if self.mean is not None:
                self.mean.swap()

    def tensors(self, keep: bool = True) -> dict[str, Tensor]:
        """Return what exact resume needs beside the component's weights, as whole tensors.

        Args:
            keep: False on ranks that only help to gather tensors.
        """
        found = _optimizer_tensors(self.optimizer, "", keep)
        if self.adversary is not None and self.adversary_optimizer is not None:
            weights = self.adversary.state_dict().items()
            found |= {f"{ADVERSARY}{name}": whole(value, keep) for name, value in weights}
            found |= _optimizer_tensors(self.adversary_optimizer, ADVERSARY_OPTIMIZER, keep)
        if self.mean is not None:
            found |= self.mean.tensors(keep)
        return found | adapter_tensors(self.component, self.component.state_dict())

    def state(self) -> dict[str, Any]:
        """Return the numbers that ``tensors`` leaves out, as JSON."""
        found: dict[str, Any] = {}
        if self.mean is not None:
            found["updates"] = self.mean.updates
        if self.scaler is not None:
            found["scaler"] = self.scaler.state_dict()
        return found

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Load what ``tensors`` and ``state`` returned.

        Raises:
            ValueError, KeyError, RuntimeError: if it does not fit.
        """
        others = ("adversary.", ADAPTER, LAST, MEAN)
        own = {name: value for name, value in tensors.items() if not name.startswith(others)}
        if any(name.startswith(ADAPTER) for name in tensors):
            # The component's file holds weights with adapters added in: take both apart again.
            load_adapters(self.component, tensors)
        elif adapters(self.component):
            own = {}  # moments of peft's adapters, of Segue 0.1: these are merged, new ones begin
        _load_optimizer(self.optimizer, own)
        if self.adversary is not None and self.adversary_optimizer is not None:
            self.adversary.load_state_dict(_with_prefix(ADVERSARY, tensors))
            _load_optimizer(self.adversary_optimizer, _with_prefix(ADVERSARY_OPTIMIZER, tensors))
        if self.mean is not None:
            self.mean.load(tensors, int(state.get("updates", 0)))
        if self.scaler is not None and "scaler" in state:
            self.scaler.load_state_dict(state["scaler"])


def make_adversary(component: Component, seed: int) -> Adversary | None:
    """Return the component's adversary, if it has one; its weights depend on the seed alone."""
    torch.manual_seed(seed)
    adversary = component.adversary()
    return None if adversary is None else adversary.to(component.device).train()


def make_learner(
    component: Component, adversary: Adversary | None, config: TrainingConfig, engine: Engine
) -> Learner:
    """Return the component with fresh optimizers, and running means if the config asks for them."""
    optimizer, opposed = make_optimizer(component, config), None
    engine.add_optimizer(optimizer)
    if adversary is not None:
        opposed = make_optimizer(adversary, config)
        engine.add_optimizer(opposed)
    mean = RunningMean(component, config.ema) if config.ema else None
    return Learner(component, optimizer, adversary, opposed, mean, engine.scaler)


def _with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): value for k, value in tensors.items() if k.startswith(prefix)}


def _optimizer_tensors(
    optimizer: torch.optim.Optimizer, prefix: str, keep: bool
) -> dict[str, Tensor]:
    return {
        f"{prefix}{index}.{key}": whole(torch.as_tensor(value), keep)
        for index, entry in optimizer.state_dict()["state"].items()
        for key, value in entry.items()
    }


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        # Moments have the shape of their weight and are sharded like it; step counts have none.
        like = parameters[int(index)]
        fitting = as_sharded(tensor, like) if tensor.shape == like.shape else tensor
        state.setdefault(int(index), {})[key] = fitting
    # Rates and decays are those of the config now, which may differ from the checkpoint's.
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
