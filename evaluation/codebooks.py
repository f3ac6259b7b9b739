"""How much of a tokenizer's codebooks is in use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from segue.core.interfaces import Tokens
from segue.core.spec import TokenSpec
from segue.evaluation.statistics import entropy


@dataclass
class CodebookUse:
    """Counts of every code of every level.

    Attributes:
        counts: ``[Q, V]``.
        frame_rate: frames per second.
    """

    counts: Int64[Tensor, "Q V"]
    frame_rate: float

    @classmethod
    def of(cls, spec: TokenSpec) -> CodebookUse:
        """Nothing counted yet."""
        counts = torch.zeros(spec.num_levels, spec.codebook_size, dtype=torch.long)
        return cls(counts, float(spec.frame_rate))

    def add(self, tokens: Tokens) -> None:
        for row in tokens.rows():
            for level, ids in enumerate(row.cpu()):
                self.counts[level] += torch.bincount(ids, minlength=self.counts.shape[1])

    def figures(self) -> list[dict[str, Any]]:
        """Per level: share of the codes that occurred, perplexity as a share of the codebook size,
        and the kbit/s that are left when codes are written by how often they occur.

        With few frames there can be no high share: at most ``frames / V`` codes occurred.
        """
        found = []
        for level, counts in enumerate(self.counts):
            bits = entropy(counts) if counts.any() else 0.0
            found.append(
                {
                    "level": level,
                    "used": int((counts > 0).sum()) / len(counts),
                    "perplexity": 2**bits / len(counts),
                    "entropy_kbit_per_second": bits * self.frame_rate / 1000,
                    "frames": int(counts.sum()),
                }
            )
        return found
