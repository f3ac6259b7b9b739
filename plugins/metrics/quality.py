"""Compare audio with its reference, sample by sample or as listeners would."""

from __future__ import annotations

import math
import warnings
from importlib import import_module
from typing import Any

import numpy
import torch
from jaxtyping import Float
from torch import Tensor
from torchaudio.transforms import MelSpectrogram

from segue.core.audio import resample
from segue.core.errors import PluginError
from segue.core.interfaces import Metric
from segue.plugins.metrics.common import SPEECH_RATE, is_silent
from segue.plugins.metrics.options import VisqolOptions

FLOOR = 1e-5
WINDOW_SECONDS, HOP_SECONDS, BANDS = 0.064, 0.016, 80
EPSILON = 1e-9
#: The figures of silence, the worst there are: in dB, where unrelated noise has about -40; where
#: the mapping of P.862.2 ends; and ViSQOL's lowest.
LOWEST_RATIO, LOWEST_PESQ, LOWEST_VISQOL = -60.0, 0.999, 1.0
TOO_SHORT = "Not enough STFT frames"  # pystoi warns of it and returns 1e-5
VISQOL_RATES = {"speech": 16_000, "audio": 48_000}


class LogMelDistance(Metric):
    """Mean absolute difference of log10 mel magnitudes (80 bands, 64 ms windows)."""

    unit = "log10"
    higher_is_better = False

    def __call__(
        self, reference: Float[Tensor, "T"], audio: Float[Tensor, "T"], sample_rate: int
    ) -> float:
        window = round(WINDOW_SECONDS * sample_rate)
        if reference.shape[0] <= window // 2:  # a spectrogram reflects half a window at each end
            return math.nan
        hop = round(HOP_SECONDS * sample_rate)
        mel = MelSpectrogram(sample_rate, n_fft=window, hop_length=hop, n_mels=BANDS, power=1)
        ours, theirs = (mel(wave).clamp_min(FLOOR).log10() for wave in (audio, reference))
        return float((ours - theirs).abs().mean())


class SiSdr(Metric):
    """10 log10 of the energy of the scaled reference over that of what is left, in dB (Le Roux et
    al., arXiv 1811.02508).

    Silence has no ratio: it has the lowest figure, -60 dB, and nothing has less.
    """

    unit = "dB"

    def __call__(
        self, reference: Float[Tensor, "T"], audio: Float[Tensor, "T"], sample_rate: int
    ) -> float:
        reference, audio = reference - reference.mean(), audio - audio.mean()
        if is_silent(reference):
            return math.nan
        if is_silent(audio):
            return LOWEST_RATIO
        scale = (reference @ audio) / (reference @ reference + EPSILON)
        target = scale * reference
        noise = audio - target
        ratio = (target @ target + EPSILON) / (noise @ noise + EPSILON)
        return max(LOWEST_RATIO, float(10 * torch.log10(ratio)))


class Stoi(Metric):
    """Correlate short-time band envelopes, about 0 to 1: how much of speech is understood (Taal et
    al., IEEE TASLP 19(7), 2011)."""

    def __init__(self) -> None:
        self._stoi: Any = import_module("pystoi").stoi

    def __call__(
        self, reference: Float[Tensor, "T"], audio: Float[Tensor, "T"], sample_rate: int
    ) -> float:
        if is_silent(reference):
            return math.nan
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=TOO_SHORT, category=RuntimeWarning)
            try:
                pair = reference.numpy(), audio.numpy()
                return float(self._stoi(*pair, sample_rate, extended=False))
            except RuntimeWarning:
                return math.nan


class Pesq(Metric):
    """Predict the mean opinion score of listeners, 1 to 4.64; both are compared at 16 kHz
    (wide-band mode of ITU-T P.862.2)."""

    unit = "MOS"

    def __init__(self) -> None:
        self._pesq: Any = import_module("pesq")

    def __call__(
        self, reference: Float[Tensor, "T"], audio: Float[Tensor, "T"], sample_rate: int
    ) -> float:
        reference, audio = (resample(wave, sample_rate, SPEECH_RATE) for wave in (reference, audio))
        if is_silent(reference):
            return math.nan
        try:
            # Silence has no level that could be brought to the standard one.
            heard = audio if not is_silent(audio) else reference
            pair = reference.numpy(), heard.numpy()
            score = float(self._pesq.pesq(SPEECH_RATE, *pair, "wb"))
        except (self._pesq.NoUtterancesError, self._pesq.BufferTooShortError):
            return math.nan
        return score if heard is audio else LOWEST_PESQ


class Visqol(Metric):
    """Predict the mean opinion score, 1 to 5, from the similarity of gammatone spectrograms (Chinen
    et al., arXiv 2004.09584)."""

    unit = "MOS"
    costly = True

    def __init__(self, config: VisqolOptions) -> None:
        self.rate = VISQOL_RATES[config.mode]
        self._api: Any = import_module("visqol").VisqolApi()
        lattice = config.lattice if config.mode == "speech" else None
        try:
            self._api.create(mode=config.mode, use_lattice_model=lattice)
        except ImportError as error:
            raise PluginError(
                "visqol.v1:lattice", str(error), "pip install 'visqol-python[lattice]'"
            ) from error

    def __call__(
        self, reference: Float[Tensor, "T"], audio: Float[Tensor, "T"], sample_rate: int
    ) -> float:
        if is_silent(reference):
            return math.nan
        if is_silent(audio):
            return LOWEST_VISQOL
        waves = (resample(wave, sample_rate, self.rate) for wave in (reference, audio))
        pair = (wave.double().numpy() for wave in waves)
        try:
            with numpy.errstate(all="ignore"):
                return float(self._api.measure_from_arrays(*pair, self.rate).moslqo)
        except (IndexError, ValueError):  # the reference holds no patch that could be compared
            return math.nan
