"""Hold out whole groups (speakers, pieces), so that no voice is in two splits."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import numpy

from segue.data.recordings import SPLITS, Recordings

HELD_OUT = 0.05  # share of the groups, where a source names no split


def hold_out(
    recordings: Recordings,
    share: float = HELD_OUT,
    undecided: numpy.ndarray[Any, Any] | None = None,
) -> Recordings:
    """Put a share of the groups into the split ``valid``.

    A group is chosen by a hash of its name alone, so it stays where it is when others are added. If
    a share of few groups is none, the one with the lowest hash is held out, unless it is the only.

    Args:
        share: of the groups, 0 to 1; 0 holds none out.
        undecided: mask of the recordings that this decides on; by default all.
    """
    chosen = numpy.ones(len(recordings), bool) if undecided is None else undecided
    group = recordings.columns["group"]
    present = numpy.unique(group[chosen])
    if not share or len(present) < 2:
        return recordings
    ranks = numpy.array([_rank(recordings.groups[number]) for number in present])
    held = present[ranks < share]
    if not len(held):
        held = present[ranks.argmin()][None]
    split = recordings.columns["split"].copy()
    split[chosen & numpy.isin(group, held)] = SPLITS.index("valid")
    return recordings.replaced(split=split)


def _rank(group: str) -> float:
    """Return a number from 0 to 1 that looks random."""
    return int(hashlib.sha256(os.fsencode(group)).hexdigest()[:8], 16) / 16**8
