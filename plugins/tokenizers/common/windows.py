"""Encode rows one by one and long rows in windows, for networks over whole recordings."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from segue.core.interfaces import Lengths, Wave

Encode = Callable[[Float[Tensor, "T"]], Float[Tensor, "N D"]]


def encode_rows(
    encode: Encode,
    wave: Wave,
    lengths: Lengths,
    frame_size: int,
    width: int,
    window: int,
    margin: int,
) -> Float[Tensor, "B N D"]:
    """Return the frames of a ragged batch, each row encoded on its own by ``in_windows``.

    A batched network sums in another order, so that a token close to two centroids could depend
    on the rows beside it.

    Args:
        encode: returns ``ceil(T / frame_size)`` frames of D = ``width`` features.
        wave: the rows; what lies beyond ``lengths`` is ignored.
        lengths: samples.
        frame_size: samples per frame.
        width: D.
        window: most frames to encode at once.
        margin: frames to drop where windows meet.
    """
    found = wave.new_zeros(wave.shape[0], -(-wave.shape[1] // frame_size), width)
    for row, length in enumerate(lengths.tolist()):
        if length:
            frames = in_windows(encode, wave[row, :length], frame_size, window, margin)
            found[row, : frames.shape[0]] = frames
    return found


def in_windows(
    encode: Encode, wave: Float[Tensor, "T"], frame_size: int, window: int, margin: int
) -> Float[Tensor, "N D"]:
    """Return the frames of one recording, encoded in overlapping windows if it is long.

    Args:
        encode: returns ``ceil(T / frame_size)`` frames.
        wave: the recording.
        frame_size: samples per frame.
        window: most frames to encode at once; more than two margins.
        margin: frames to drop at a side where another window continues.
    """
    total = -(-wave.shape[0] // frame_size)
    if total <= window:
        return encode(wave)
    pieces = []
    # Every window is whole; the last one begins early enough to be so.
    for first in range(0, total - 2 * margin, window - 2 * margin):
        start = min(first, total - window)
        stop = min(start + window, total)
        found = encode(wave[start * frame_size : stop * frame_size])
        kept_from = 0 if first == 0 else first + margin - start
        kept_to = stop - start if stop == total else window - margin
        pieces.append(found[kept_from:kept_to])
    return torch.cat(pieces)
