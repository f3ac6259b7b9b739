"""A running mean of the weights (Polyak and Juditsky, 1992), which often does better than the last
ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from segue.training.sharding import local

EARLY = 10  # the mean of fewer updates than about this many reaches back less far


class Average:
    """Exponential means of the parameters that are trained.

    Buffers are no part of it: codebooks and statistics are running means already. A shard of a
    parameter has the shard of its mean.

    Args:
        module: whose parameters are followed.
        decay: of the mean, once ``updates`` are many.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self.means = {name: p.detach().clone() for name, p in self._parameters.items()}
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self) -> None:
        """Take the parameters in as they are now."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (EARLY + self.updates))
        for name, parameter in self._parameters.items():
            local(self.means[name]).lerp_(local(parameter.detach()), 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange parameters and means."""
        for name, parameter in self._parameters.items():
            here, there = local(parameter.detach()), local(self.means[name])
            kept = here.clone()
            here.copy_(there)
            there.copy_(kept)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The means stand in for the parameters for the duration."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def named(self) -> dict[str, Tensor]:
        """The parameters that are followed, by name."""
        return {name: parameter.detach() for name, parameter in self._parameters.items()}
