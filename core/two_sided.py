"""The contract of stage models that draw frames between two known sides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch

from segue.core.options import Sampling
from segue.core.tokens import Tokens


class TwoSided(ABC):
    """Fill gaps: a second base class of a ``StageLM`` that can look at what comes after."""

    @abstractmethod
    def fill(
        self,
        given: tuple[Tokens, ...],
        left: Tokens,
        num_frames: int,
        right: Tokens,
        sampling: Sampling,
        generators: Sequence[torch.Generator],
    ) -> Tokens:
        """Draw the frames between two known sides of every row.

        Args:
            given: one batch per given slice, aligned with frame 0 of ``left``; row i covers at
                least ``left.lengths[i] + num_frames + right.lengths[i]`` target frames in time.
            left: ``[B, Q, N]`` frames before the gap, ragged, possibly none.
            right: ``[B, Q, M]`` frames after the gap, ragged, possibly none.
            generators: one random generator per row, so that a row does not depend on its batch.

        Returns:
            The drawn frames only: ids ``[B, Q, num_frames]`` in ``[0, V)``.
        """
