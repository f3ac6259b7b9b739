"""Look through a file of any length before it is taken through a codec, in bounded memory."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from segue.core.errors import AudioError
from segue.inference.inputs import dc_offset, level_notes
from segue.sound.open_audio import OpenAudio


@dataclass(frozen=True)
class Survey:
    """Figures of a whole recording at a pipeline's rate."""

    samples: int  # their number
    scale: float  # factor that brings the peak to full scale, if it is above
    offset: float  # what to take off the scaled samples
    rms: float  # of what is left
    notes: tuple[str, ...]  # for the user


def survey(opened: OpenAudio, rate: int, place: str) -> Survey:
    """Read a recording once, part by part; raise ``AudioError`` if it is empty or not finite."""
    samples, peak, total, squares = 0, 0.0, 0.0, 0.0
    for block in opened.blocks_at(rate):
        exact = block.double()
        samples += len(block)
        peak = max(peak, float(block.abs().max()))
        total, squares = total + float(exact.sum()), squares + float(exact.square().sum())
    if not samples:
        raise AudioError(place, "holds no sample", "name a file that holds audio")
    notes = list(opened.notes)
    if opened.rate != rate:
        notes.append(f"resampled from {opened.rate} Hz to {rate} Hz")
    scale = max(1.0, peak)
    mean, power = total / samples / scale, squares / samples / scale**2
    offset = dc_offset(mean, math.sqrt(max(0.0, power - mean**2)))
    notes += level_notes(peak, offset)
    rms = math.sqrt(max(0.0, power - (2 * mean - offset) * offset))
    return Survey(samples, scale, offset, rms, tuple(notes))


def windows(
    blocks: Iterable[Float[Tensor, "T"]], piece: int, margin: int
) -> Iterator[tuple[int, Float[Tensor, "T"]]]:
    """Yield pieces of a wave with up to ``margin`` samples on both sides.

    Yields:
        the number of samples before the piece, and all of them.
    """
    held, before = torch.zeros(0), 0
    for block in itertools.chain(blocks, [None]):
        held = held if block is None else torch.cat([held, block])
        while len(held) >= before + piece + margin or (block is None and len(held) > before):
            yield before, held[: before + piece + margin]
            dropped = max(0, before + piece - margin)
            held, before = held[dropped:], before + piece - dropped
