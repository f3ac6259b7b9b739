"""Compare key, density and rhythm of continuations with their prompt's."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torchaudio.transforms import MelSpectrogram

from segue.core.audio import resample
from segue.core.metrics import Continuation, ContinuationMetric, Measured
from segue.plugins.layers.distributions import (
    interval_table,
    intervals_of,
    jensen_shannon,
)
from segue.plugins.metrics.common import is_silent, of_each, of_others

CLASSES = 12
#: How well each pitch class fits a key on C (Krumhansl & Kessler, Psych. Review 89(4), 1982).
MAJOR = (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88)
MINOR = (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17)
#: The scales of major and minor; minor has the leading note as well: eight classes of twelve.
SCALES = {False: (0, 2, 4, 5, 7, 9, 11), True: (0, 2, 3, 5, 7, 8, 10, 11)}
Weights = Float[Tensor, "12"]


@dataclass(frozen=True)
class Key:
    """A musical key: ``tonic`` as a pitch class, C = 0, and the mode."""

    tonic: int
    minor: bool

    def share(self, weights: Weights) -> float:
        """Return the share of the weights on the key's scale; NaN if there are none."""
        if not weights.sum() > 0:
            return math.nan
        inside = [(self.tonic + step) % CLASSES for step in SCALES[self.minor]]
        return float(weights[inside].sum() / weights.sum())


def key_of(weights: Weights) -> Key | None:
    """Return the key whose profile correlates most with the weights (Krumhansl-Schmuckler
    algorithm), or None if all weights are equal."""
    centred = weights.double() - weights.double().mean()
    if float(centred.norm()) < 1e-9:
        return None
    fits = {}
    for minor, profile in ((False, MAJOR), (True, MINOR)):
        fit = torch.tensor(profile, dtype=torch.float64)
        fit = (fit - fit.mean()) / fit.std()
        for tonic in range(CLASSES):
            fits[Key(tonic, minor)] = float(centred @ fit.roll(tonic))
    return max(fits, key=lambda key: fits[key])


def key_figures(
    prompt: Weights, ours: Weights, truth: Weights, foreign: Sequence[Weights]
) -> dict[str, float]:
    """Compare a continuation's pitch classes with its prompt's.

    Args:
        prompt, ours, truth: weights of the prompt, the continuation and the true continuation.
        foreign: true continuations of other pieces: what chance would bring.

    Returns:
        ``in_key``, ``truth_in_key`` and ``foreign_in_key``, shares on the scale of the prompt's
        key; ``same_key``; divergences in bits: ``class_distance`` to the prompt and to the
        ``..._truth``, ``truth_class_distance`` of the truth to the prompt, and the mean
        ``foreign_class_distance``.
    """
    key = key_of(prompt)
    shares = [math.nan if key is None else key.share(one) for one in (ours, truth, *foreign)]
    unlike = [jensen_shannon(prompt, one) for one in foreign]
    return {
        "in_key": shares[0],
        "truth_in_key": shares[1],
        "foreign_in_key": mean_of(shares[2:]),
        "same_key": math.nan if key is None else float(key_of(ours) == key),
        "truth_same_key": float(key_of(truth) == key) if key and truth.sum() > 0 else math.nan,
        "class_distance": jensen_shannon(prompt, ours),
        "truth_class_distance": jensen_shannon(prompt, truth),
        "foreign_class_distance": mean_of(unlike),
        "class_distance_to_truth": jensen_shannon(ours, truth),
    }


def mean_of(values: Sequence[float]) -> float:
    """Return the mean of the finite values; NaN if there are none."""
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan


def timing_figures(
    prompt: Sequence[float],
    ours: Sequence[float],
    truth: Sequence[float],
    seconds: tuple[float, float, float],
) -> dict[str, float]:
    """Compare the onsets of a continuation with its prompt's.

    Args:
        prompt, ours, truth: onsets in seconds, in order.
        seconds: lengths of the three.

    Returns:
        ``density`` (onsets per second) of each; ``density_ratio`` to the prompt's and whether it is
        ``within_factor_two``, and both of the truth; ``median_interval`` (seconds between onsets)
        of each; ``interval_distance``, divergence (bits) of the times between onsets from the
        prompt's, of the truth from the prompt's, and of the continuation from the truth's.
    """
    densities = [
        len(onsets) / length if length else math.nan
        for onsets, length in zip((prompt, ours, truth), seconds, strict=True)
    ]
    before, *after = densities
    ratio, true_ratio = (one / before if before > 0 else math.nan for one in after)
    tables = [interval_table(onsets) for onsets in (prompt, ours, truth)]
    medians = [
        statistics.median(intervals) if (intervals := intervals_of(onsets)) else math.nan
        for onsets in (prompt, ours, truth)
    ]
    return {
        "prompt_density": densities[0],
        "density": densities[1],
        "truth_density": densities[2],
        "density_ratio": ratio,
        "within_factor_two": _within(ratio),
        "truth_density_ratio": true_ratio,
        "truth_within_factor_two": _within(true_ratio),
        "prompt_median_interval": medians[0],
        "median_interval": medians[1],
        "truth_median_interval": medians[2],
        "interval_distance": jensen_shannon(tables[0], tables[1]),
        "truth_interval_distance": jensen_shannon(tables[0], tables[2]),
        "interval_distance_to_truth": jensen_shannon(tables[1], tables[2]),
    }


def _within(ratio: float) -> float:
    return float(0.5 <= ratio <= 2) if math.isfinite(ratio) else math.nan


RATE, WINDOW, HOP = 8000, 4096, 1024  # bins of 2 Hz: semitones are distinct from 65 Hz (C2) on
LOWEST, HIGHEST = 65.0, 1050.0  # Hz, C2 to C6: fundamentals, and few of the overtones
FLOOR_DB = 30.0  # peaks so far below the loudest of their frame do not count


class Chroma(ContinuationMetric):
    """Measure spectral peaks by pitch class, weighted by the square root of their power.

    Overtones count as notes, so that a single note has its fifth and its third in it; the
    figures of the true continuation and of other pieces show its values for real music.
    See ``key_figures`` for what is returned.
    """

    domains = ("piano",)

    def measure(self, records: Sequence[Continuation]) -> Measured:
        each = of_each(records, pitch_classes)
        three = enumerate(zip(*each, strict=True))
        return Measured([key_figures(*one, of_others(records, at, each[2])) for at, one in three])


def pitch_classes(wave: Float[Tensor, "T"], sample_rate: int) -> Float[Tensor, "12"]:
    """Return the weight of each pitch class, C first; zeros for silence."""
    found = torch.zeros(CLASSES, dtype=torch.float64)
    if is_silent(wave):
        return found
    wave = resample(wave, sample_rate, RATE)
    wave = torch.nn.functional.pad(wave, (0, max(0, WINDOW - wave.shape[0])))
    window = torch.hann_window(WINDOW)
    spectrum = torch.stft(wave, WINDOW, HOP, window=window, center=False, return_complex=True)
    power = spectrum.abs().square()
    middle = power[1:-1]
    loudest = power.max(0).values.clamp_min(1e-9)
    peaks = (middle > power[:-2]) & (middle >= power[2:])
    peaks &= middle > loudest * 10 ** (-FLOOR_DB / 10)
    bins, frames = peaks.nonzero(as_tuple=True)
    frequencies = _frequencies(power, bins + 1, frames)
    inside = (frequencies > LOWEST * 2 ** (-1 / 24)) & (frequencies < HIGHEST)
    classes = (12 * (frequencies[inside] / 440).log2() + 69).round().long() % CLASSES
    weights = middle[bins[inside], frames[inside]].sqrt().double()
    return found.index_add_(0, classes, weights)


def _frequencies(power: Tensor, bins: Tensor, frames: Tensor) -> Tensor:
    """Return the frequencies of peaks in Hz, refined by a parabola through the logarithms of three
    bins."""
    logs = (power + 1e-12).log()
    left, top, right = (logs[bins + step, frames] for step in (-1, 0, 1))
    shift = 0.5 * (left - right) / (left - 2 * top + right).clamp_max(-1e-6)
    return (bins + shift.clamp(-0.5, 0.5)) * RATE / WINDOW


HOP_SECONDS, WINDOW_SECONDS, BANDS = 0.01, 0.046, 64
RANGE = 1e-3  # bands so far below the loudest magnitude are flattened
LAG = 2  # frames over which a rise is taken
AROUND, APART = 10, 5  # frames of the local mean to each side; least distance of onsets
RISE = 0.05  # decades, mean over bands, by which an onset exceeds the local mean


class Onsets(ContinuationMetric):
    """Measure onsets per second and the times between them; a chord is one onset.

    See ``timing_figures`` for what is returned.
    """

    domains = ("piano",)

    def measure(self, records: Sequence[Continuation]) -> Measured:
        each = zip(records, *of_each(records, find_onsets), strict=True)
        return Measured(
            [
                timing_figures(prompt, ours, truth, record.seconds)
                for record, prompt, ours, truth in each
            ]
        )


def find_onsets(wave: Float[Tensor, "T"], sample_rate: int) -> list[float]:
    """Return the seconds of onsets: peaks of the spectral flux (Dixon, DAFx 2006)."""
    if is_silent(wave):
        return []
    hop = round(HOP_SECONDS * sample_rate)
    mel = MelSpectrogram(
        sample_rate, n_fft=round(WINDOW_SECONDS * sample_rate), hop_length=hop, n_mels=BANDS,
        power=1, pad_mode="constant",
    )  # fmt: skip
    # Silence goes in front, so that what begins with the audio is found, too.
    spectra = mel(torch.nn.functional.pad(wave, (AROUND * hop, 0)))
    spectra = spectra.clamp_min(float(spectra.max()) * RANGE).log10()
    flux = (spectra[:, LAG:] - spectra[:, :-LAG]).clamp_min(0).mean(0)
    pooled = torch.nn.functional
    largest = pooled.max_pool1d(flux[None], 2 * APART + 1, 1, APART)[0]
    mean = pooled.avg_pool1d(flux[None], 2 * AROUND + 1, 1, AROUND, count_include_pad=False)[0]
    peaks = ((flux == largest) & (flux > mean + RISE)).nonzero()[:, 0]
    onsets = [float((peak + LAG / 2 - AROUND) * HOP_SECONDS) for peak in peaks]
    # Where the audio is cut off, all bands rise.
    return [onset for onset in onsets if onset < wave.shape[0] / sample_rate - WINDOW_SECONDS]
