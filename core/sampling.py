"""Draw tokens from logits: temperature, top-k, top-p, one random generator per row."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from segue.core.options import Sampling


def own_generator(*numbers: int) -> torch.Generator:
    """Return a generator on the CPU for these numbers, such as a seed and the index of a stage."""
    # PyTorch keeps 32 bits of a seed: in higher bits, an index would change nothing.
    mixed = hashlib.blake2b(repr(numbers).encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(mixed, "little"))


def row_generators(seed: int, batch: int) -> list[torch.Generator]:
    """Return one generator per row, so that a row's draws do not depend on the rows beside it.

    Row i is seeded with ``seed + i``: it equals the same prompt run alone with that seed.
    """
    # On the CPU whatever the model's device: models that draw elsewhere seed their own from these.
    return [own_generator(seed + row) for row in range(batch)]


def keep_top_k(logits: Float[Tensor, "B V"], k: int) -> Float[Tensor, "B V"]:
    """Set all but the k largest logits of each row to minus infinity; keep ties."""
    if k >= logits.shape[-1]:
        return logits
    threshold = logits.topk(k, dim=-1).values[:, -1:]
    return logits.masked_fill(logits < threshold, -torch.inf)


def keep_top_p(logits: Float[Tensor, "B V"], p: float) -> Float[Tensor, "B V"]:
    """Set logits outside the smallest set whose probability reaches p to minus infinity.

    The most likely token is always kept.
    """
    ordered, order = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(dim=-1)
    # Kept while the more likely tokens do not reach p: the one that crosses p is kept too.
    beyond = probabilities.cumsum(dim=-1) - probabilities >= p
    beyond[:, 0] = False  # also where p is too small for a float32
    dropped = beyond.scatter(-1, order, beyond)
    return logits.masked_fill(dropped, -torch.inf)


def sample(
    logits: Float[Tensor, "B V"], sampling: Sampling, generators: Sequence[torch.Generator]
) -> Int64[Tensor, "B"]:
    """Draw one token per row.

    Args:
        logits: ``[B, V]``; minus infinity bans a token.
        sampling: temperature 0 takes the most likely token and uses no randomness.
        generators: one per row, or per group of as many neighbours; noise is drawn where they are.
    """
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits.float()
    # Relative to the largest, so that even a very low temperature does not overflow.
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / sampling.temperature
    if sampling.top_k is not None:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p is not None:
        logits = keep_top_p(logits, sampling.top_p)
    noise = gumbel_noise(generators, len(logits) // len(generators), logits.shape[-1])
    return (logits + noise.to(logits.device)).argmax(dim=-1)


def gumbel_noise(generators: Sequence[torch.Generator], rows: int, width: int) -> Tensor:
    """Return ``rows`` rows of each generator: argmax(logit + noise) is a draw from the softmax."""
    shape, kind = (rows, width), torch.float32  # whatever PyTorch's default: the same everywhere
    draws = [torch.rand(shape, generator=g, dtype=kind, device=g.device) for g in generators]
    noise = draws[0] if len(draws) == 1 else torch.cat(draws)
    # In place, in parts that one thread takes: to allocate or to wake another takes longer.
    few = noise.device.type == "cpu" and 2048 < noise.numel() <= 16384
    for part in noise.view(-1).split(2048) if few else [noise]:
        part.clamp_min_(1e-20).log_().neg_().clamp_min_(1e-20).log_().neg_()
    return noise
