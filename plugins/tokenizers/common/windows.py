"""Long audio in windows, for encoders whose cost grows faster than the audio."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


def in_windows(
    encode: Callable[[Float[Tensor, "T"]], Float[Tensor, "N D"]],
    wave: Float[Tensor, "T"],
    frame_size: int,
    window: int,
    margin: int,
) -> Float[Tensor, "N D"]:
    """Frames of a recording of any length; of a window or less, they are those of ``encode``.

    Args:
        encode: gives ``ceil(T / frame_size)`` frames.
        wave: the recording.
        frame_size: samples of a frame.
        window: most frames that are encoded at once; more than two margins.
        margin: frames dropped where a window has a neighbour, whose they are.
    """
    total = -(-wave.shape[0] // frame_size)
    if total <= window:
        return encode(wave)
    pieces = []
    step = window - 2 * margin
    # Every window but the last is whole; the last one reaches as far back as it needs to be so.
    for first in range(0, total - 2 * margin, step):
        start = min(first, total - window)
        stop = min(start + window, total)
        found = encode(wave[start * frame_size : stop * frame_size])
        kept_from = 0 if first == 0 else first + margin - start
        kept_to = stop - start if stop == total else window - margin
        pieces.append(found[kept_from:kept_to])
    return torch.cat(pieces)
