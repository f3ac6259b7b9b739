"""The contract of what a codec is trained against."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from segue.core.tokens import Wave


class Adversary(nn.Module, ABC):
    """The discriminators that a codec learns to deceive (Goodfellow et al., arXiv 1406.2661).

    An adversary lives only while its codec is trained and is not saved with it.
    """

    @abstractmethod
    def forward(self, real: Wave, made: Wave) -> Mapping[str, Tensor]:
        """Compute the losses of recordings ``[B, T]`` and a codec's reconstructions of them.

        Returns:
            ``adversary_loss``, which the adversary minimises, and terms of the codec's loss, such
            as ``adversarial`` and ``feature_matching``; further figures are logged. Each loss has
            gradients for the side that minimises it only.
        """
