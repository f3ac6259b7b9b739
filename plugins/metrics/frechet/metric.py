"""Fréchet audio distance (Kilgour et al., arXiv 1812.08466) of continuations and recordings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from segue.core.metrics import Continuation, ContinuationMetric, Measured
from segue.plugins.metrics.frechet.config import FrechetOptions
from segue.plugins.metrics.frechet.embeddings import MelStatistics, Yamnet, pieces


class Frechet(ContinuationMetric):
    """Distance of two clouds of embeddings, each taken as a Gaussian.

    ``distance`` is that of continuations to true continuations; ``prompt_distance`` that of the
    prompts to them, real audio of the same speakers or pieces: what is the least to be had. Of few
    pieces the distance is too large, of both; compare figures of like sets and one embedding only.
    The figure of each file is the number of its ``pieces``.
    """

    def __init__(self, options: FrechetOptions) -> None:
        yamnet = options.embedding == "yamnet"
        self._embed = Yamnet(Path(options.weights)) if yamnet else MelStatistics()

    def measure(self, records: Sequence[Continuation]) -> Measured:
        prompts, made, truth = (
            [self._embed(pieces(wave, record.sample_rate)) for wave, record in pairs]
            for pairs in (
                [(record.prompt, record) for record in records],
                [(record.continuation, record) for record in records],
                [(record.truth, record) for record in records],
            )
        )
        overall = {
            "distance": _Between(made, truth),
            "prompt_distance": _Between(prompts, truth),
        }
        return Measured([{"pieces": float(len(rows))} for rows in made], overall)


class _Between:
    """Distance of two sets of files, given how often each file counts."""

    def __init__(
        self, ours: Sequence[Float[Tensor, "P D"]], theirs: Sequence[Float[Tensor, "P D"]]
    ) -> None:
        self._sets = [torch.cat(list(files)) for files in (ours, theirs)]
        self._counts = [torch.tensor([len(rows) for rows in files]) for files in (ours, theirs)]

    def __call__(self, weights: Float[Tensor, "B"]) -> float:
        weighted = [
            (rows, weights.repeat_interleave(counts))
            for rows, counts in zip(self._sets, self._counts, strict=True)
        ]
        if any(float(weight.sum()) < 2 for _, weight in weighted):
            return math.nan
        return frechet_distance(*weighted[0], *weighted[1])


def frechet_distance(
    a: Float[Tensor, "P D"],
    a_weights: Float[Tensor, "P"],
    b: Float[Tensor, "R D"],
    b_weights: Float[Tensor, "R"],
) -> float:
    """Return the squared distance of means plus tr(A + B - 2 (A B)^½) of covariances.

    With A = X'X and B = Y'Y the last trace is the sum of the singular values of X Y', which needs
    no root of a matrix that has no full rank.
    """
    (first, x), (second, y) = _root(a, a_weights), _root(b, b_weights)
    cross = torch.linalg.svdvals(x @ y.T).sum()
    spread = x.square().sum() + y.square().sum() - 2 * cross
    return max(0.0, float((first - second).square().sum() + spread))


def _root(rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean, and X such that X'X is the covariance; X has no more rows than columns."""
    total = weights.sum()
    mean = weights @ rows / total
    centred = (rows - mean) * (weights / (total - 1)).sqrt()[:, None]
    if centred.shape[0] > centred.shape[1]:
        centred = torch.linalg.qr(centred, mode="r").R
    return mean, centred
