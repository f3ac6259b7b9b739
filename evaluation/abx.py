"""Measure ABX discrimination: does a representation separate categories? (Schatz et al., 2013)

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
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from segue.core.errors import DataError
from segue.evaluation.representations import Distance
from segue.evaluation.statistics import bootstrap_interval
from segue.evaluation.subjects import Item

MAX_CELLS = 1 << 20  # triples compared at once
LEAST_SPEAKERS = 3  # to draw from: draws of two are one of them twice, or the same two


def abx_errors(
    items: Sequence[Item], sequences: Sequence[Tensor], distance: Distance
) -> dict[str, Errors]:
    """Compare all triples within and across speakers, or raise ``DataError`` if there are none.

    Args:
        sequences: ``[N, D]`` frames of each item.
        distance: of frames; sequences are warped onto each other.

    Returns:
        ``within`` and ``across``, where there is a triple.
    """
    labels, speakers = (_numbered([getattr(i, key) for i in items]) for key in ("label", "speaker"))
    blocks = _blocks(items, labels)
    pairs = [torch.combinations(block) for block in blocks]
    if not pairs:
        fix = "add items of another label with the same context"
        raise DataError("items", "no two labels share a context", fix)
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
    """Return the indices of the items of each context that has several labels."""
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
    """Sum errors over triples, and count triples, for each label of A and X and label of B."""
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
    """Collect mean errors for each pair of speakers: that of A and B, and that of X.

    Triples are averaged in each context and pair of speakers, then over contexts, speakers and
    pairs of labels, in that order, so that what is frequent does not count more (as in Libri-light,
    arXiv 1912.07875).
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
        """Subtract another representation's errors on the same items, triple by triple."""
        found = Errors(self.num_speakers)
        found.triples = self.triples
        for speakers, (total, contexts) in self.means.items():
            found.means[speakers] = [total - other.means[speakers][0], contexts]
        return found

    def estimate(self) -> dict[str, Any]:
        """Return the mean with its interval (by bootstrap over speakers; None for fewer than
        three), the lowest and highest of a speaker (of X), and the numbers of speakers and triples.
        """
        speakers = torch.tensor(list(self.means))
        contexts = torch.stack([pair[1].flatten() for pair in self.means.values()]).double()
        totals = torch.stack([pair[0].flatten() for pair in self.means.values()]).double()
        errors, there = totals / contexts.clamp(min=1), (contexts > 0).double()

        def mean(weights: Tensor) -> float:
            """Average over speakers, then over pairs of labels."""
            counts = weights @ there
            seen = counts > 0
            return (
                float(((weights @ errors)[seen] / counts[seen]).mean()) if seen.any() else math.nan
            )

        def drawn(times: Tensor) -> float:
            a, x = times[speakers].unbind(1)
            return mean(torch.where(speakers[:, 0] == speakers[:, 1], a, a * x))

        each = [mean((speakers[:, 1] == s).double()) for s in speakers[:, 1].unique()]
        low = high = None
        if len(speakers.unique()) >= LEAST_SPEAKERS:
            low, high = bootstrap_interval(drawn, self.num_speakers)
        return {
            "mean": mean(torch.ones(len(speakers), dtype=torch.float64)),
            "low": low,
            "high": high,
            "lowest": min(each),
            "highest": max(each),
            "count": len(each),
            "triples": self.triples,
        }


# --- dynamic time warping of many pairs at once ------------------------------------------------

SAME = 1 - 1e-6  # cosine of frames that are taken for equal
TABLE_CELLS = 1 << 21  # in one batch: a few diagonals of its tables fit a cache


def frame_distances(a: Tensor, b: Tensor, distance: Distance) -> Float[Tensor, "P N M"]:
    """Return distances in [0, 1] of every frame of one sequence to every frame of another.

    Args:
        a: ``[P, N, D]``: vectors for ``angular`` (the angle over pi, as in the ABX evaluation of
            Libri-light, arXiv 1912.07875), ids of D levels for ``hamming`` (the share of levels
            that differ).
    """
    if distance == "hamming":
        differ = [a[:, :, None, d] != b[:, None, :, d] for d in range(a.shape[2])]
        return torch.stack(differ).float().mean(0)
    cosines = nn.functional.normalize(a, dim=2) @ nn.functional.normalize(b, dim=2).transpose(1, 2)
    # Equal frames are at no distance, whatever rounding says: ties count.
    return torch.acos(torch.where(cosines > SAME, 1.0, cosines).clamp(min=-1)) / math.pi


def warped(
    costs: Float[Tensor, "P N M"], rows: Int64[Tensor, "P"], columns: Int64[Tensor, "P"]
) -> Float[Tensor, "P"]:
    """Return the mean cost along the cheapest path from the first to the last cell (Sakoe & Chiba,
    1978).

    A path steps down, right or both; of equally cheap ones it prefers both, then right. All pairs
    advance together, one anti-diagonal at a time.

    Args:
        costs: of every pair of frames.
        rows: ``N`` of each pair, at least 1.
        columns: ``M`` of each pair, at least 1.
    """
    pairs, height, width = costs.shape
    diagonals = height + width - 1
    # Row i is moved i cells to the right: what was an anti-diagonal becomes a column.
    skewed = nn.functional.pad(costs, (0, height), value=math.inf).reshape(pairs, -1)
    skewed = skewed[:, :-height].reshape(pairs, height, diagonals).permute(2, 1, 0).contiguous()
    # Entry i + 1 belongs to row i; entry 0 lies outside the table.
    before = costs.new_full((height + 1, pairs), math.inf)
    last = before.clone()
    before[0] = 0.0
    steps_before, steps_last = torch.zeros_like(before), torch.zeros_like(before)
    ends, means = rows + columns - 2, costs.new_empty(pairs)
    for index in range(diagonals):
        best, steps = before[:-1], steps_before[:-1]
        for cost, length in ((last[1:], steps_last[1:]), (last[:-1], steps_last[:-1])):
            cheaper = cost < best
            best, steps = torch.where(cheaper, cost, best), torch.where(cheaper, length, steps)
        now, steps_now = torch.empty_like(last), torch.empty_like(steps_last)
        now[0], steps_now[0] = math.inf, 0.0
        torch.add(best, skewed[index], out=now[1:])
        torch.add(steps, 1.0, out=steps_now[1:])
        done = (ends == index).nonzero()[:, 0]
        means[done] = now[rows[done], done] / steps_now[rows[done], done]
        before, last, steps_before, steps_last = last, now, steps_last, steps_now
    return means


def pair_distances(
    sequences: Sequence[Tensor], pairs: Int64[Tensor, "P 2"], distance: Distance
) -> Float[Tensor, "P"]:
    """Return the distance of each pair of sequences after warping.

    Args:
        sequences: ``[N, D]`` each, of at least one frame; see ``frame_distances``.
    """
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    first, second = lengths[pairs].unbind(1)
    order = torch.argsort(torch.maximum(first, second) * 100_000 + torch.minimum(first, second))
    found = torch.empty(len(pairs))
    start = 0
    while start < len(order):
        # The longest of a batch is its last: a guess from the first is made good by halving.
        size = max(1, TABLE_CELLS // int((first * second)[order[start]].clamp(min=1)))
        while size > 1 and _cells(first, second, order[start : start + size]) > 2 * TABLE_CELLS:
            size //= 2
        chosen = order[start : start + size]
        a, b = ([sequences[i] for i in pairs[chosen, side].tolist()] for side in (0, 1))
        costs = frame_distances(
            pad_sequence(a, batch_first=True), pad_sequence(b, batch_first=True), distance
        )
        found[chosen] = warped(costs, first[chosen], second[chosen])
        start += size
    return found


def _cells(first: Tensor, second: Tensor, chosen: Tensor) -> int:
    """Count the cells of a batch's tables, padding included."""
    return int(first[chosen].max()) * int(second[chosen].max()) * len(chosen)
