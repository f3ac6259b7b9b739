"""True continuations against spoiled ones: how often the true one is the likelier."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from segue.core.errors import AudioError, ConfigError, DataError
from segue.core.pipeline import Pipeline
from segue.core.progress import Progress
from segue.data.audio_files import read_recording
from segue.data.recordings import Recording
from segue.evaluation.first_stage import FirstStage, preferred
from segue.evaluation.statistics import grouped_summary

SHUFFLES = 4  # orders that are drawn of each continuation


@dataclass(frozen=True)
class Order:
    """How continuations are spoiled.

    Attributes:
        prompt_seconds: left as they are, and not judged.
        seconds: judged.
        piece_seconds: length of the pieces that change places.
        seed: of the orders.
    """

    prompt_seconds: float
    seconds: float
    piece_seconds: float
    seed: int = 0


def evaluate_order(
    pipeline: Pipeline,
    recordings: Sequence[Recording],
    order: Order,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """How often the true continuation is likelier than one that is spoiled.

    Tokens of each recording are made once, so that no cut can be heard. After the same prompt come
    the true frames; the same in pieces of another order (``shuffled``, the share of ``SHUFFLES``
    orders that are less likely); the same backwards (``reversed``); and as many frames of another
    group's recording at that place (``foreign``).

    The foreign frames may be likelier in themselves, so the true ones are also held against
    themselves after the other recording's prompt (``foreign_prompt``).

    Returns:
        ``order``: those shares, with intervals over groups, ``..._margin`` in nats per frame, and
        ``nats``, those of the truth.

    Raises:
        ConfigError: if a continuation holds fewer than two pieces.
        DataError: if no recording is long enough.
    """
    stage = FirstStage(pipeline)
    rate = float(stage.lm.stage.target.frame_rate)
    first, count = round(order.prompt_seconds * rate), round(order.seconds * rate)
    piece = max(1, round(order.piece_seconds * rate))
    if count < 2 * piece:
        raise ConfigError("piece_seconds", f"{order.piece_seconds:g} s is too long", "take less")
    found = [(r, _whole(stage, r, first + count)) for r in recordings]
    kept = [(recording.group, ids) for recording, ids in found if ids is not None]
    if not kept:
        least = order.prompt_seconds + order.seconds
        raise DataError("recordings", f"none lasts {least:g} s", "ask for fewer seconds")
    rows = []
    for index, (group, ids) in enumerate(kept):
        others = [other for name, other in (*kept[index + 1 :], *kept[:index]) if name != group]
        random = torch.Generator().manual_seed(order.seed * len(kept) + index)
        rows.append(_spoiled(stage, ids, others[0] if others else None, first, piece, random))
        if progress is not None:
            progress("order", index + 1, len(kept))
    figures = grouped_summary(rows, [group for group, _ in kept])
    return {"order": figures | {"unusable": len(recordings) - len(kept)}}


def _whole(stage: FirstStage, recording: Recording, frames: int) -> Int64[Tensor, "Q N"] | None:
    """The first frames of a recording; None if it has not so many or cannot be read."""
    seconds = (frames + 1) / float(stage.lm.stage.target.frame_rate)
    try:
        ids = stage.tokens(read_recording(recording, first_seconds=seconds))
    except AudioError:
        return None
    return ids[:, :frames] if ids.shape[1] >= frames else None


def _spoiled(
    stage: FirstStage,
    ids: Int64[Tensor, "Q N"],
    other: Int64[Tensor, "Q N"] | None,
    first: int,
    piece: int,
    random: torch.Generator,
) -> dict[str, float]:
    """Shares and margins of one recording; frames from ``first`` on are judged."""
    prompt, truth = ids[:, :first], ids[:, first:]

    def nats(before: Int64[Tensor, "Q M"], after: Int64[Tensor, "Q K"]) -> float:
        return float(stage.score(torch.cat([before, after], dim=1))[first:].mean())

    orders = [nats(prompt, shuffled(truth, piece, random)) for _ in range(SHUFFLES)]
    spoiled = {
        "shuffled": orders,
        "reversed": [nats(prompt, truth.flip(1))],
        "foreign": [] if other is None else [nats(prompt, other[:, first:])],
        "foreign_prompt": [] if other is None else [nats(other[:, :first], truth)],
    }
    own = nats(prompt, truth)
    row = {name: _mean([preferred(own, one) for one in all_]) for name, all_ in spoiled.items()}
    margins = {
        f"{name}_margin": _mean([own - one for one in all_]) for name, all_ in spoiled.items()
    }
    return row | margins | {"nats": -own}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def shuffled(
    ids: Int64[Tensor, "Q N"], piece: int, random: torch.Generator
) -> Int64[Tensor, "Q N"]:
    """Pieces of ``piece`` frames, the last one perhaps shorter, in another order than theirs."""
    pieces = ids.split(piece, dim=1)
    order = list(range(len(pieces)))
    while order == sorted(order):
        order = torch.randperm(len(pieces), generator=random).tolist()
    return torch.cat([pieces[index] for index in order], dim=1)
