"""Draw tokens for the rows of a batch, with classifier-free guidance where it is asked for.

Shape legend: B rows that are asked for, R rows that are computed (B, or 2 B with guidance), q
levels, V codebook size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from segue.core.interfaces import Tokens
from segue.core.options import Sampling
from segue.core.sampling import sample


class Drawer:
    """Draws the tokens of one call of ``generate``.

    With guidance each row is computed a second time without its given slices, and the logits are
    moved away from those (Ho and Salimans, arXiv 2207.12598, equation 6 with w = guidance - 1).
    """

    def __init__(self, sampling: Sampling, generators: Sequence[torch.Generator]) -> None:
        self.sampling = sampling
        self.generators = list(generators)
        self.guided = sampling.guidance != 1.0

    def rows(self, tokens: Tokens) -> Tokens:
        """The rows to compute for a prompt ``[B, Q, N]``."""
        if not self.guided:
            return tokens
        return Tokens(tokens.ids.repeat(2, 1, 1), tokens.lengths.repeat(2))

    def given_rows(self, given: Sequence[Tokens]) -> tuple[Tokens, ...]:
        """The given slices of the rows to compute: the second half has none of their frames."""
        if not self.guided:
            return tuple(given)
        return tuple(
            Tokens(g.ids.repeat(2, 1, 1), torch.cat([g.lengths, torch.zeros_like(g.lengths)]))
            for g in given
        )

    def per_row(self, values: Tensor) -> Tensor:
        """``[B, ...]`` repeated for the rows to compute."""
        return torch.cat([values, values]) if self.guided else values

    def guide(self, logits: Float[Tensor, "R ..."]) -> Float[Tensor, "B ..."]:
        """Logits of the rows that are asked for."""
        if not self.guided:
            return logits
        seeing, blind = logits.float().chunk(2)
        return blind + self.sampling.guidance * (seeing - blind)

    def draw(self, logits: Float[Tensor, "R V"]) -> Int64[Tensor, "B"]:
        """One token per row."""
        return sample(self.guide(logits), self.sampling, self.generators)

    def draw_levels(self, logits: Float[Tensor, "R q V"]) -> Int64[Tensor, "B q"]:
        """Tokens of several levels that do not depend on each other; levels draw in order."""
        logits = self.guide(logits)
        batch, levels, _ = logits.shape
        generators = [g for g in self.generators for _ in range(levels)]
        return sample(logits.flatten(0, 1), self.sampling, generators).view(batch, levels)

    def ends(self, logit: Float[Tensor, " R"]) -> list[bool]:
        """For each row, whether the audio ends here, of which ``logit`` is the log-odds.

        Drawn from the model's own probability, whatever the temperature; at temperature 0 it ends
        where that is more likely than not.
        """
        likely = self.guide(logit).float().sigmoid().cpu()
        if self.sampling.temperature == 0:
            return [bool(p > 0.5) for p in likely]
        pairs = zip(likely, self.generators, strict=True)
        return [bool(torch.rand((), generator=g) < p) for p, g in pairs]
