"""Run one stage for any length: windows of the training crop, each continuing the one before.

A stage LM sees at most a window of ``crop_seconds``, as it did in training; so memory does not
grow with the length of the audio.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch

from segue.core.errors import GenerationError
from segue.core.interfaces import StageLM, Tokens
from segue.core.options import Sampling
from segue.core.progress import Progress
from segue.core.spec import StageSpec


def window_frames(stage: StageSpec, crop_seconds: float) -> int:
    """Target frames of one window: a whole number of frames of every given slice."""
    unit = stage.alignment
    return max(1, int(crop_seconds * stage.target.frame_rate) // unit) * unit


def run_stage(
    lm: StageLM,
    given: Sequence[Tokens],
    prompt: Tokens,
    num_frames: int,
    *,
    window: int,
    overlap: float,
    sampling: Sampling,
    generators: Sequence[torch.Generator],
    progress: Progress | None = None,
) -> Tokens:
    """Continue every row of ``prompt`` by ``num_frames`` frames, window by window.

    Args:
        given: whole streams, aligned with frame 0 of the prompt, one per given slice.
        prompt: ragged ``[B, Q, N]``, possibly without frames; every row a whole number of
            ``stage.alignment`` frames.
        num_frames: frames to add.
        window: most frames that the model sees at once, known and new together.
        overlap: part of a window that is known frames once the audio exceeds one window.
        generators: one per row.
        progress: called with the stage's name, frames done and frames in all.

    Returns:
        Prompt and continuation of each row, ``[B, Q, N + num_frames]``.

    Raises:
        GenerationError: if a prompt ends within a frame of a given slice.
    """
    known, done = prompt, 0
    unit = lm.stage.alignment
    odd = [length for length in prompt.lengths.tolist() if length % unit]
    if odd:
        raise GenerationError(
            f"stages.{lm.stage.name}",
            f"a prompt has {odd[0]} frames",
            f"cut it to a multiple of {unit} frames, where all its given slices end a frame",
        )
    while done < num_frames:
        budget = _context_budget(num_frames - done, window, overlap, unit)
        count = min(num_frames - done, window - budget)
        context = [min(length, budget) for length in known.lengths.tolist()]
        starts = [int(n) - kept for n, kept in zip(known.lengths, context, strict=True)]
        new = lm.generate(
            tuple(_given_window(lm.stage, i, g, starts, context, count)
                  for i, g in enumerate(given)),
            Tokens.stack([row[:, start:] for row, start in zip(known.rows(), starts, strict=True)]),
            count,
            sampling,
            generators,
        )  # fmt: skip
        known = known.append(new)
        done += count
        if progress is not None:
            progress(lm.stage.name, done, num_frames)
    return known


def _context_budget(wanted: int, window: int, overlap: float, unit: int) -> int:
    """Known frames the model is shown at most.

    All that leave room for what is wanted, if that fits one window; else the overlap. It depends
    on no row, so that a row's windows are the same alone and in a batch; it is a whole number of
    units, so that a window starts where every given slice starts a frame.
    """
    budget = max(window - wanted, int(window * overlap))
    return min(budget // unit * unit, window - unit)


def _given_window(
    stage: StageSpec,
    index: int,
    given: Tokens,
    starts: Sequence[int],
    context: Sequence[int],
    count: int,
) -> Tokens:
    """The frames of a given stream that lie under each row's window."""
    ratio: Fraction = stage.frames_per_target_frame(index)
    rows = []
    for row, start, kept in zip(given.rows(), starts, context, strict=True):
        first = int(start * ratio)
        last = -(-(start + kept + count) * ratio.numerator // ratio.denominator)
        rows.append(row[:, first:last])
    return Tokens.stack(rows)
