"""Draw tokens from logits: temperature, top-k, top-p, one random generator per row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from segue.core.options import Sampling


def row_generators(seed: int, batch: int) -> list[torch.Generator]:
    """One generator per row, so that a row's draw does not depend on the rows beside it.

    Row i is seeded with ``seed + i``: it equals the same prompt run alone with that seed. They live
    on the CPU whatever the model's device, so a seed means the same everywhere.
    """
    return [torch.Generator().manual_seed(seed + row) for row in range(batch)]


def keep_top_k(logits: Float[Tensor, "B V"], k: int) -> Float[Tensor, "B V"]:
    """Logits with all but the k largest of each row at minus infinity (ties are kept)."""
    if k >= logits.shape[-1]:
        return logits
    threshold = logits.topk(k, dim=-1).values[:, -1:]
    return logits.masked_fill(logits < threshold, -torch.inf)


def keep_top_p(logits: Float[Tensor, "B V"], p: float) -> Float[Tensor, "B V"]:
    """Logits outside the smallest set whose probability reaches p at minus infinity.

    The most likely token is always kept.
    """
    ordered, order = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    dropped = (before >= p).scatter(-1, order, before >= p)
    return logits.masked_fill(dropped, -torch.inf)


def sample(
    logits: Float[Tensor, "B V"], sampling: Sampling, generators: Sequence[torch.Generator]
) -> Int64[Tensor, "B"]:
    """Draw one token per row.

    Args:
        logits: ``[B, V]``; minus infinity bans a token.
        sampling: temperature 0 takes the most likely token and uses no randomness.
        generators: one per row.
    """
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits.float()
    # Relative to the best, so that no temperature, however low, overflows.
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / sampling.temperature
    if sampling.top_k is not None:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p is not None:
        logits = keep_top_p(logits, sampling.top_p)
    size = logits.shape[-1]
    # Of one number format, whatever the default is: a seed means the same everywhere.
    draws = [torch.rand(size, generator=g, dtype=torch.float32) for g in generators]
    noise = torch.stack(draws)
    # The Gumbel-max trick: argmax(logit + Gumbel noise) is a draw from the softmax.
    gumbel = -torch.log((-torch.log(noise.clamp_min(1e-20))).clamp_min(1e-20))
    return (logits + gumbel.to(logits.device)).argmax(dim=-1)
