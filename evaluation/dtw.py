"""Dynamic time warping of many pairs of frame sequences at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

Distance = Literal["angular", "hamming"]
SAME = 1 - 1e-6  # cosine of frames that are taken for equal
MAX_CELLS = 1 << 21  # of the tables of one batch: a few of its diagonals fit a cache


def frame_distances(a: Tensor, b: Tensor, distance: Distance) -> Float[Tensor, "P N M"]:
    """Distances in [0, 1] of every frame of one sequence to every frame of another.

    Args:
        a: ``[P, N, D]``: vectors for ``angular`` (the angle over pi, as in the ABX evaluation of
            Libri-light, arXiv 1912.07875), ids of D levels for ``hamming`` (the share of levels
            that differ).
        b: ``[P, M, D]``.
        distance: which.
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
    """Mean cost along the cheapest path from the first cell to the last (Sakoe & Chiba, 1978).

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
    """Distance of each pair of sequences after warping.

    Args:
        sequences: ``[N, D]`` each, of at least one frame; see ``frame_distances``.
        pairs: indices of sequences.
        distance: of frames.
    """
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    first, second = lengths[pairs].unbind(1)
    order = torch.argsort(torch.maximum(first, second) * 100_000 + torch.minimum(first, second))
    found = torch.empty(len(pairs))
    start = 0
    while start < len(order):
        # The longest of a batch is its last: a guess from the first is made good by halving.
        size = max(1, MAX_CELLS // int((first * second)[order[start]].clamp(min=1)))
        while size > 1 and _cells(first, second, order[start : start + size]) > 2 * MAX_CELLS:
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
    """Of the tables of a batch, padding included."""
    return int(first[chosen].max()) * int(second[chosen].max()) * len(chosen)
