"""Find the musical key that pitch classes suggest, and how much of others lies in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from segue.plugins.metrics.distances import jensen_shannon

CLASSES = 12
#: How well each pitch class fits a key on C (Krumhansl & Kessler, Psych. Review 89(4), 1982).
MAJOR = (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88)
MINOR = (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17)
#: Of a minor key the natural scale and the leading note: eight classes of twelve.
SCALES = {False: (0, 2, 4, 5, 7, 9, 11), True: (0, 2, 3, 5, 7, 8, 10, 11)}
Weights = Float[Tensor, "12"]


@dataclass(frozen=True)
class Key:
    """A musical key: ``tonic`` as a pitch class, C = 0, and the mode."""

    tonic: int
    minor: bool

    def share(self, weights: Weights) -> float:
        """Return the share of the weights on the key's scale; NaN if there are none."""
        if not weights.sum() > 0:
            return math.nan
        inside = [(self.tonic + step) % CLASSES for step in SCALES[self.minor]]
        return float(weights[inside].sum() / weights.sum())


def key_of(weights: Weights) -> Key | None:
    """Return the key whose profile correlates most with the weights (Krumhansl-Schmuckler
    algorithm), or None if all weights are equal."""
    centred = weights.double() - weights.double().mean()
    if float(centred.norm()) < 1e-9:
        return None
    fits = {}
    for minor, profile in ((False, MAJOR), (True, MINOR)):
        fit = torch.tensor(profile, dtype=torch.float64)
        fit = (fit - fit.mean()) / fit.std()
        for tonic in range(CLASSES):
            fits[Key(tonic, minor)] = float(centred @ fit.roll(tonic))
    return max(fits, key=lambda key: fits[key])


def key_figures(
    prompt: Weights, ours: Weights, truth: Weights, foreign: Sequence[Weights]
) -> dict[str, float]:
    """Compare a continuation's pitch classes with its prompt's.

    Args:
        prompt, ours, truth: weights of the prompt, the continuation and the true continuation.
        foreign: true continuations of other pieces: what chance would bring.

    Returns:
        ``in_key``, ``truth_in_key`` and ``foreign_in_key``, shares on the scale of the prompt's
        key; ``same_key``; divergences in bits: ``class_distance`` to the prompt and to the
        ``..._truth``, ``truth_class_distance`` of the truth to the prompt, and the mean
        ``foreign_class_distance``.
    """
    key = key_of(prompt)
    shares = [math.nan if key is None else key.share(one) for one in (ours, truth, *foreign)]
    unlike = [jensen_shannon(prompt, one) for one in foreign]
    return {
        "in_key": shares[0],
        "truth_in_key": shares[1],
        "foreign_in_key": mean_of(shares[2:]),
        "same_key": math.nan if key is None else float(key_of(ours) == key),
        "truth_same_key": float(key_of(truth) == key) if key and truth.sum() > 0 else math.nan,
        "class_distance": jensen_shannon(prompt, ours),
        "truth_class_distance": jensen_shannon(prompt, truth),
        "foreign_class_distance": mean_of(unlike),
        "class_distance_to_truth": jensen_shannon(ours, truth),
    }


def mean_of(values: Sequence[float]) -> float:
    """Return the mean of the finite values; NaN if there are none."""
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan
