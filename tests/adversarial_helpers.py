"""An adversary that several tests train against."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from segue.core.interfaces import Adversary


class Critic(Adversary):
    """Linear; ``real`` should score 1 and ``made`` 0."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(8, 1)

    def forward(self, real: Tensor, made: Tensor) -> Mapping[str, Tensor]:
        there, here = self.score(real), self.score(made)
        return {
            "adversary_loss": (there - 1).square().mean() + here.square().mean(),
            "adversarial": (here - 1).square().mean(),
        }
