"""Make audio of the tensors and arrays that a caller passes."""

from __future__ import annotations

import numpy
import torch
from torch import Tensor

from segue.core.audio import Audio, to_mono
from segue.core.errors import AudioError
from segue.core.spec import MAX_SAMPLE_RATE, MIN_SAMPLE_RATE
from segue.core.validation import whole_number

MAX_CHANNELS = 64


def as_audio(wave: object, sample_rate: object, place: str = "wave") -> Audio:
    """Make audio of a tensor or array ``[T]``, ``[C, T]`` or ``[T, C]`` that a caller passed.

    The shorter side is that of the channels, if one has at most 64 and the other more.

    Raises:
        AudioError: if it is not such an array, is empty, or the rate is out of range.
    """
    rate = whole_number(sample_rate)
    if rate is None or not MIN_SAMPLE_RATE <= rate <= MAX_SAMPLE_RATE:
        raise AudioError(
            f"{place}.sample_rate",
            f"{sample_rate!r} is not a sample rate",
            f"give a whole number of Hz from {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE}",
        )
    try:
        if isinstance(wave, numpy.ndarray):
            # A copy in native byte order: PyTorch takes neither others nor negative strides, and
            # the caller may write to theirs later.
            wave = numpy.array(wave, dtype=wave.dtype.newbyteorder("="), order="C")
        tensor = _as_float(torch.as_tensor(wave), place)
    except (TypeError, ValueError, RuntimeError) as error:
        raise AudioError(
            place, f"{type(wave).__name__} is not audio", "give a tensor or array [T] or [C, T]"
        ) from error
    if tensor.ndim == 1:
        tensor = tensor[None]
    if tensor.ndim == 2 and tensor.shape[0] > MAX_CHANNELS >= tensor.shape[1]:
        tensor = tensor.T.contiguous()
    if tensor.ndim != 2 or not 1 <= tensor.shape[0] <= MAX_CHANNELS:
        raise AudioError(
            place,
            f"has shape {tuple(tensor.shape)}",
            f"give [T], [C, T] or [T, C] with 1 to {MAX_CHANNELS} channels",
        )
    if tensor.shape[1] == 0:
        raise AudioError(place, "holds no sample", "give some audio")
    mono, note = to_mono(tensor)
    return Audio(mono, rate, (note,) if note else ())


def _as_float(tensor: Tensor, place: str) -> Tensor:
    if tensor.layout is not torch.strided:
        raise AudioError(place, "is sparse", "give tensor.to_dense()")
    if tensor.is_floating_point():
        return tensor.detach().float().cpu()
    if tensor.dtype not in (torch.int16, torch.int32):
        raise AudioError(place, f"holds {tensor.dtype}", "give float, int16 or int32 samples")
    # As libsndfile scales them: the lowest value is -1.
    return tensor.cpu().float() / -float(torch.iinfo(tensor.dtype).min)
