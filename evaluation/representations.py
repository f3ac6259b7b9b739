"""Turn recordings into what is compared: tokens, the vectors they stand for, plain features."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torchaudio
from jaxtyping import Float
from torch import Tensor

from segue.core.audio import Audio, resample
from segue.core.interfaces import Tokenizer
from segue.inference.transcoder import gains_to

#: How two frames are compared: see ``frame_distances``.
Distance = Literal["angular", "hamming"]

FEATURE_RATE, WINDOW, HOP = 16_000, 400, 160  # 25 ms every 10 ms
MFCC = "MFCC"
NUM_CEPSTRA, NUM_BANDS = 13, 40
FEATURE_LEVEL, FLOOR = 0.1, 1e-3  # RMS of the audio, least magnitude


@dataclass(frozen=True)
class Representation:
    """Describe audio as a sequence of frames that can be compared."""

    name: str  # in tables
    frame_rate: float  # frames per second
    distance: Distance  # of two frames
    # Returns ``[N, D]`` of audio; ids of D levels for the distance ``hamming``.
    frames: Callable[[Audio], Tensor]
    vocabulary: int | None = None  # number of ids of a level, of tokens
    levels: int = 1


def of_tokenizer(
    name: str, tokenizer: Tokenizer, level: float | None, counts: Sequence[int]
) -> list[Representation]:
    """Return a tokenizer's tokens and, if it offers them, their vectors, for numbers of levels.

    Args:
        level: RMS that audio is brought to, as in a pipeline.
    """
    rate, found = float(tokenizer.spec.frame_rate), []
    nothing = torch.zeros(1, 1, 1, dtype=torch.long, device=tokenizer.device)
    for count in counts:
        label = name if tokenizer.spec.num_levels == 1 else f"{name}[0:{count}]"
        ids = partial(_ids, tokenizer, level, count)
        size = tokenizer.spec.codebook_size
        found.append(Representation(f"{label} tokens", rate, "hamming", ids, size, count))
        if tokenizer.vectors(nothing) is not None:
            found.append(
                Representation(
                    f"{label} vectors", rate, "angular", partial(_vectors, tokenizer, ids)
                )
            )
    return found


@torch.inference_mode()
def _ids(tokenizer: Tokenizer, level: float | None, count: int, audio: Audio) -> Tensor:
    wave = resample(audio.wave, audio.sample_rate, tokenizer.spec.sample_rate)
    wave = (wave * gains_to(level, [wave]))[None].to(tokenizer.device)
    lengths = torch.tensor([wave.shape[1]], device=wave.device)
    return tokenizer.encode(wave, lengths).row(0)[:count].T.cpu()


@torch.inference_mode()
def _vectors(tokenizer: Tokenizer, ids: Callable[[Audio], Tensor], audio: Audio) -> Tensor:
    found = tokenizer.vectors(ids(audio).T[None].to(tokenizer.device))
    assert found is not None
    return found[0].float().cpu()


def plain_features() -> list[Representation]:
    """Return the baselines for tokenizers: cepstra, and the spectrogram they come from."""
    rate = FEATURE_RATE / HOP
    return [
        Representation(MFCC, rate, "angular", mfcc),
        Representation("log-mel", rate, "angular", log_mel),
    ]


def mfcc(audio: Audio) -> Float[Tensor, "N 39"]:
    """Return 13 mel cepstra, their slopes and the slopes' slopes. They are not normalised per
    recording, which made words harder to distinguish."""
    cosines = torchaudio.functional.create_dct(NUM_CEPSTRA, NUM_BANDS, "ortho")
    cepstra = (log_mel(audio) @ cosines).T
    slopes = torchaudio.functional.compute_deltas(cepstra)
    return torch.cat([cepstra, slopes, torchaudio.functional.compute_deltas(slopes)]).T


def log_mel(audio: Audio) -> Float[Tensor, "N 40"]:
    """Return the logarithms of 40 mel bands of audio that is brought to one level."""
    wave = resample(audio.wave, audio.sample_rate, FEATURE_RATE)
    wave = wave * gains_to(FEATURE_LEVEL, [wave])
    mel = torchaudio.transforms.MelSpectrogram(
        FEATURE_RATE, n_fft=512, win_length=WINDOW, hop_length=HOP, n_mels=NUM_BANDS, power=1
    )
    return mel(wave).clamp(min=FLOOR).log().T


def piece(frames: Tensor, frame_rate: float, start: float, end: float) -> Tensor:
    """Return the frames whose middle lies between two times, or the nearest one."""
    last = len(frames) - 1
    first = min(last, max(0, math.ceil(start * frame_rate - 0.5)))
    stop = len(frames) if math.isinf(end) else math.ceil(end * frame_rate - 0.5)
    return frames[first : max(first + 1, min(stop, len(frames)))]
