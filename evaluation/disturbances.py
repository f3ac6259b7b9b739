"""What happens to audio on its way to a listener, by which a detector is tried."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial

import soundfile
import torch
from jaxtyping import Float
from torch import Tensor

from segue.core.audio import resample

Wave = Float[Tensor, "T"]
Disturbance = Callable[[Wave, int], Wave]

BAND = 8000  # samples a second of a telephone
NOISE_DB = -20.0  # against the signal


def _coded(wave: Wave, sample_rate: int, container: str, subtype: str) -> Wave:
    """Written and read in a lossy format, as long as it was."""
    file = io.BytesIO()
    soundfile.write(file, wave.numpy(), sample_rate, format=container, subtype=subtype)
    file.seek(0)
    read = torch.from_numpy(soundfile.read(file, dtype="float32")[0])[: len(wave)]
    return torch.nn.functional.pad(read, (0, len(wave) - len(read)))


def _narrow(wave: Wave, sample_rate: int) -> Wave:
    return resample(resample(wave, sample_rate, BAND), BAND, sample_rate)[: len(wave)]


def _noisy(wave: Wave, sample_rate: int) -> Wave:
    """Noise that depends on the wave's length alone."""
    noise = torch.randn(len(wave), generator=torch.Generator().manual_seed(len(wave)))
    return wave + noise * wave.square().mean().sqrt() * 10 ** (NOISE_DB / 20)


def disturbances(sample_rate: int) -> tuple[dict[str, Disturbance], dict[str, str]]:
    """Those of ``DISTURBANCES`` that can be had, and why others cannot: an old libsndfile writes no
    MP3, and no format knows every sample rate."""
    probe, found, lacking = torch.zeros(sample_rate // 2), {}, {}
    for name, disturb in DISTURBANCES.items():
        try:
            disturb(probe, sample_rate)
        except (soundfile.LibsndfileError, ValueError) as error:  # libsndfile's, or soundfile's
            lacking[name] = f"libsndfile cannot write it at {sample_rate} Hz ({error})"
        else:
            found[name] = disturb
    return found, lacking


#: By the names that reports call them.
DISTURBANCES: dict[str, Disturbance] = {
    "MP3": partial(_coded, container="MP3", subtype="MPEG_LAYER_III"),
    "Ogg Vorbis": partial(_coded, container="OGG", subtype="VORBIS"),
    "4 kHz band": _narrow,
    "20 dB noise": _noisy,
    "20 dB quieter": lambda wave, _: wave * 10 ** (-20 / 20),
}
