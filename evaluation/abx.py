"""ABX discrimination: does a representation tell categories apart? (Schatz et al., 2013)

A and X are of one category, B is of another. It is an error if X lies closer to B than to A, and
half of one if both are as close: 0 is perfect, 0.5 is chance. *Within* speakers all three are of
one speaker; *across* speakers A and B are of one and X is of another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from segue.core.errors import DataError
from segue.evaluation.dtw import Distance, pair_distances
from segue.evaluation.items import Item
from segue.evaluation.statistics import bootstrap_interval

MAX_CELLS = 1 << 20  # triples that are compared at once
LEAST_SPEAKERS = 3  # to draw from: draws of two are one of them twice, or the same two


def abx(
    items: Sequence[Item], sequences: Sequence[Tensor], distance: Distance
) -> dict[str, dict[str, Any]]:
    """``estimate`` of the errors within and across speakers."""
    return {
        name: errors.estimate() for name, errors in abx_errors(items, sequences, distance).items()
    }


def abx_errors(
    items: Sequence[Item], sequences: Sequence[Tensor], distance: Distance
) -> dict[str, Errors]:
    """Errors within and across speakers.

    Args:
        items: what is compared.
        sequences: ``[N, D]`` frames of each item.
        distance: of frames; sequences are warped onto each other.

    Returns:
        ``within`` and ``across``, where there is a triple.

    Raises:
        DataError: if there is no triple at all.
    """
    labels, speakers = (_numbered([getattr(i, key) for i in items]) for key in ("label", "speaker"))
    blocks = _blocks(items, labels)
    pairs = [torch.combinations(block) for block in blocks]
    if not pairs:
        raise DataError("items", "no two labels share a context", "add items")
    found = pair_distances(sequences, torch.cat(pairs), distance)
    count = int(speakers.max()) + 1
    tables = {"within": Errors(count), "across": Errors(count)}
    sizes = [len(part) for part in pairs]
    for block, values in zip(blocks, found.split(sizes), strict=True):
        square = torch.zeros(len(block), len(block))
        upper = torch.triu_indices(len(block), len(block), offset=1)
        square[upper[0], upper[1]] = values
        _score(square + square.T, labels[block], speakers[block], int(labels.max()) + 1, tables)
    if not any(table.means for table in tables.values()):
        raise DataError("items", "no label has two items and another to compare", "add items")
    return {name: table for name, table in tables.items() if table.means}


def _numbered(names: Sequence[str]) -> Int64[Tensor, "I"]:
    numbers = {name: index for index, name in enumerate(sorted(set(names)))}
    return torch.tensor([numbers[name] for name in names])


def _blocks(items: Sequence[Item], labels: Tensor) -> list[Int64[Tensor, "I"]]:
    """Indices of the items of each context that has several labels."""
    contexts: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        contexts.setdefault(item.context, []).append(index)
    blocks = [torch.tensor(indices) for indices in contexts.values()]
    return [block for block in blocks if len(labels[block].unique()) > 1]


def _score(
    distances: Float[Tensor, "I I"],
    labels: Tensor,
    speakers: Tensor,
    num_labels: int,
    tables: dict[str, Errors],
) -> None:
    """Add the errors of one context."""
    members = {int(s): (speakers == s).nonzero()[:, 0] for s in speakers.unique()}
    for s, ab in members.items():
        for t, x in members.items():
            errors, triples = _cell(
                distances[ab][:, x], labels[ab], labels[x], num_labels, same=s == t
            )
            if triples.any():
                tables["within" if s == t else "across"].add((s, t), errors, triples)


def _cell(
    distances: Float[Tensor, "I J"], ab: Tensor, x: Tensor, num_labels: int, same: bool
) -> tuple[Float[Tensor, "L L"], Float[Tensor, "L L"]]:
    """Errors summed over triples, and their number, for each label of A and X and label of B."""
    alike = (ab[:, None] == x[None]).float()
    if same:
        alike.fill_diagonal_(0.0)  # X is another item than A
    wrong = torch.zeros(len(ab), len(ab))
    size = max(1, MAX_CELLS // len(ab) ** 2)
    for near, same_label in zip(distances.split(size, 1), alike.split(size, 1), strict=True):
        closer_b = near[:, None] > near[None]  # [A, B, X]
        tied = near[:, None] == near[None]
        wrong += torch.einsum("abx,ax->ab", closer_b.float() + 0.5 * tied, same_label)
    one_hot = torch.nn.functional.one_hot(ab, num_labels).float()
    errors = one_hot.T @ wrong @ one_hot
    triples = (one_hot.T @ alike.sum(1))[:, None] * one_hot.sum(0)[None]
    return errors.fill_diagonal_(0.0), triples.fill_diagonal_(0.0)


class Errors:
    """Mean errors of each pair of speakers: of A and B, and of X.

    Triples are averaged in each context and pair of speakers, then over contexts, speakers and
    pairs of labels, in that order, so that what is frequent does not count more (as in Libri-light,
    arXiv 1912.07875).

    Args:
        num_speakers: that items are of.
    """

    def __init__(self, num_speakers: int) -> None:
        self.num_speakers = num_speakers
        self.means: dict[tuple[int, int], list[Tensor]] = {}
        self.triples = 0

    def add(self, speakers: tuple[int, int], errors: Tensor, triples: Tensor) -> None:
        self.triples += int(triples.sum())
        there = (triples > 0).float()
        mean = errors / triples.clamp(min=1)
        if speakers in self.means:
            total, contexts = self.means[speakers]
            self.means[speakers] = [total + mean, contexts + there]
        else:
            self.means[speakers] = [mean, there]

    def less(self, other: Errors) -> Errors:
        """Triple by triple, by how much these are more than the other's for the same items."""
        found = Errors(self.num_speakers)
        found.triples = self.triples
        for speakers, (total, contexts) in self.means.items():
            found.means[speakers] = [total - other.means[speakers][0], contexts]
        return found

    def estimate(self) -> dict[str, Any]:
        """The mean, its interval (speakers drawn anew; None of fewer than three), the lowest and
        the highest of a speaker (of X), and how many speakers and triples there are."""
        speakers = torch.tensor(list(self.means))
        contexts = torch.stack([pair[1].flatten() for pair in self.means.values()]).double()
        totals = torch.stack([pair[0].flatten() for pair in self.means.values()]).double()
        errors, there = totals / contexts.clamp(min=1), (contexts > 0).double()

        def mean(weights: Tensor) -> float:
            """Over speakers, then over pairs of labels."""
            counts = weights @ there
            seen = counts > 0
            return (
                float(((weights @ errors)[seen] / counts[seen]).mean()) if seen.any() else math.nan
            )

        def drawn(times: Tensor) -> float:
            a, x = times[speakers].unbind(1)
            return mean(torch.where(speakers[:, 0] == speakers[:, 1], a, a * x))

        each = [mean((speakers[:, 1] == s).double()) for s in speakers[:, 1].unique()]
        low, high = math.nan, math.nan
        if len(speakers.unique()) >= LEAST_SPEAKERS:
            low, high = bootstrap_interval(drawn, self.num_speakers)
        return {
            "mean": mean(torch.ones(len(speakers), dtype=torch.float64)),
            "low": low if math.isfinite(low) else None,
            "high": high if math.isfinite(high) else None,
            "lowest": min(each),
            "highest": max(each),
            "count": len(each),
            "triples": self.triples,
        }
