"""Measure how often a detector of generated audio is right."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean
from typing import Any

import soundfile
import torch
from jaxtyping import Float
from torch import Tensor

from segue.core.audio import Audio, resample
from segue.core.errors import AudioError, DataError
from segue.core.interfaces import ORIGINS, Detector
from segue.core.progress import Progress
from segue.data.audio_files import from_16_bit
from segue.data.origin_clips import Clip, trimmed
from segue.evaluation.statistics import grouped_summary
from segue.inference.bars import tracked
from segue.inference.detection import judge

LEVELS = "coded, levels "  # begins the names of figures by level
Wave = Float[Tensor, "T"]
Disturbance = Callable[[Wave, int], Wave]  # of a wave at a sample rate


def evaluate_detector(
    detector: Detector, clips: Sequence[Clip], progress: Progress | None = None
) -> dict[str, Any]:
    """Measure accuracy on the clips kept for the test, by pairs of origins.

    An item is right if the likeliest of all three origins is its own, in each pair as well; 95 %
    intervals are drawn over groups. ``unseen`` counts groups only that the pipeline itself has not
    learnt from; ``disturbed`` has the same for each of the ``disturbances`` that can be had here.
    What is then too quiet to be judged is not right. ``left_out`` names the others. ``levels`` has
    how often recordings that went through so many levels of the codec are recognised as coded, and
    ``pipelines`` the figures of each, if there are several.
    """
    tested = [clip for clip in clips if clip.tested]
    if not tested:
        raise DataError("examples", "none is kept for the test", "give recordings of more groups")
    judged = [(clip, _right(detector, clip)) for clip in tested]
    whole = _summary(judged)
    report: dict[str, Any] = {"items": len(judged), "figures": _without_levels(whole)}
    if unseen := [pair for pair in judged if pair[0].unseen]:
        report["unseen_items"] = len(unseen)
        report["unseen"] = _without_levels(_summary(unseen))
    names = sorted({clip.pipeline for clip in tested})
    if len(names) > 1:
        report["pipelines"] = {
            name: _without_levels(_summary([pair for pair in judged if pair[0].pipeline == name]))
            for name in names
        }
    report["levels"] = {
        name.removeprefix(LEVELS): figure
        for name, figure in whole.items()
        if name.startswith(LEVELS)
    }
    tried, report["left_out"] = disturbances(detector.config.sample_rate)
    report["disturbed"] = {}
    for name, disturb in tracked(list(tried.items()), "disturbances", progress):
        disturbed = [(clip, _right(detector, clip, disturb)) for clip in tested]
        report["disturbed"][name] = _without_levels(_summary(disturbed))
    return report


def _summary(judged: Sequence[tuple[Clip, dict[str, float]]]) -> dict[str, Any]:
    """Summarise with an interval of some width. A bootstrap over groups without a mistake would
    have none, so the low end is at most that of Wilson (1927) for as many trials as groups."""
    found = grouped_summary([row for _, row in judged], [clip.group for clip, _ in judged])
    for figure in found.values():
        if figure["low"] is not None:
            figure["low"] = min(figure["low"], _wilson(figure["mean"], figure["groups"]))
    return found


def _without_levels(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: figure for name, figure in figures.items() if not name.startswith(LEVELS)}


def _wilson(share: float, count: int, z: float = 1.96) -> float:
    middle = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return (middle - spread) / (1 + z * z / count)


def _right(
    detector: Detector, clip: Clip, disturb: Disturbance = lambda wave, _: wave
) -> dict[str, float]:
    right, rate = {}, detector.config.sample_rate
    by_level: dict[str, float] = {}
    for origin in ORIGINS:
        found = []
        for samples in clip.of(origin):
            audio = Audio(disturb(trimmed(from_16_bit(samples)), rate), rate)
            try:
                probability = judge(detector, audio, clip.group).probability
            except AudioError:  # too little is left of it to be judged
                found.append(0.0)
                continue
            found.append(float(max(probability, key=lambda name: probability[name]) == origin))
        right[origin] = fmean(found)
        if origin == "coded":
            by_level = {f"{LEVELS}{count}": one for count, one in enumerate(found, start=1)}
    return by_level | {
        "generated against real": (right["generated"] + right["real"]) / 2,
        "generated against coded": (right["generated"] + right["coded"]) / 2,
        "coded against real": (right["coded"] + right["real"]) / 2,
        **{f"{origin} recognised": value for origin, value in right.items()},
    }


# --- disturbances that a detector is tried on ---------------------------------------------------

BAND = 8000  # samples a second of a telephone
NOISE_DB = -20.0  # against the signal


def _coded(wave: Wave, sample_rate: int, container: str, subtype: str) -> Wave:
    """Write and read in a lossy format, and keep the length."""
    file = io.BytesIO()
    soundfile.write(file, wave.numpy(), sample_rate, format=container, subtype=subtype)
    file.seek(0)
    read = torch.from_numpy(soundfile.read(file, dtype="float32")[0])[: len(wave)]
    return torch.nn.functional.pad(read, (0, len(wave) - len(read)))


def _narrow(wave: Wave, sample_rate: int) -> Wave:
    return resample(resample(wave, sample_rate, BAND), BAND, sample_rate)[: len(wave)]


def _noisy(wave: Wave, sample_rate: int) -> Wave:
    """Add noise that depends on the wave's length alone."""
    noise = torch.randn(len(wave), generator=torch.Generator().manual_seed(len(wave)))
    return wave + noise * wave.square().mean().sqrt() * 10 ** (NOISE_DB / 20)


def disturbances(sample_rate: int) -> tuple[dict[str, Disturbance], dict[str, str]]:
    """Return the ``DISTURBANCES`` available here, and why others are not: an old libsndfile cannot
    write MP3, and no format takes every sample rate."""
    probe, found, lacking = torch.zeros(sample_rate // 2), {}, {}
    for name, disturb in DISTURBANCES.items():
        try:
            disturb(probe, sample_rate)
        except (soundfile.LibsndfileError, ValueError) as error:  # libsndfile's, or soundfile's
            lacking[name] = f"libsndfile cannot write it at {sample_rate} Hz ({error})"
        else:
            found[name] = disturb
    return found, lacking


#: Disturbances by their names in reports.
DISTURBANCES: dict[str, Disturbance] = {
    "MP3": partial(_coded, container="MP3", subtype="MPEG_LAYER_III"),
    "Ogg Vorbis": partial(_coded, container="OGG", subtype="VORBIS"),
    "4 kHz band": _narrow,
    "20 dB noise": _noisy,
    "20 dB quieter": lambda wave, _: wave * 10 ** (-20 / 20),
}
