"""Evaluate a pipeline on recordings: continuations, likelihood."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segue.core.audio import Audio
from segue.core.config.schema import PromptConfig
from segue.core.data.audio_files import read_recording
from segue.core.data.recordings import Recording
from segue.core.data.token_crops import TokenCrops
from segue.core.data.token_store import TokenStore
from segue.core.errors import AudioError, DataError
from segue.core.evaluation.statistics import summarise
from segue.core.pipeline import Pipeline
from segue.core.progress import Progress

CLIPPED, SILENT_RMS = 0.999, 1e-3
PEAK_SEARCH_SECONDS = (0.1, 2.0)  # a loop repeats within this lag


def evaluate_continuations(
    pipeline: Pipeline,
    recordings: Sequence[Recording],
    *,
    prompt_seconds: float,
    seconds: float,
    seed: int,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Continue the start of each recording; health figures of what comes out.

    Returns:
        Estimates of ``level_ratio_db`` (continuation against prompt), ``clipped`` and ``silent``
        (shares of samples and of 50 ms pieces), ``spectrum_distance`` (long-term log-mel spectra,
        decades) and ``loop`` (largest correlation of the loudness curve with itself, 1 = a loop).
    """
    rows = []
    for done, recording in enumerate(recordings, start=1):
        audio = usable(recording, pipeline.config.prompt)
        if audio is not None:
            prompt = audio.wave[: round(prompt_seconds * audio.sample_rate)]
            result = pipeline.continue_(prompt, audio.sample_rate, seconds=seconds, seed=seed)
            start = result.row()[: int(result.prompt_samples[0])]
            rows.append(health(start, result.continuation(), pipeline.sample_rate))
        if progress is not None:
            progress("continuations", done, len(recordings))
    if not rows:
        raise DataError("recordings", "none can be used", "check the data")
    return summarise(rows)


def evaluate_likelihood(
    pipeline: Pipeline, tokens: Path, batches: int, progress: Progress | None = None
) -> dict[str, Any]:
    """Mean negative log-likelihood of held-out tokens, in nats per token, by stage and level.

    ``bits_per_second`` is that of all levels of a stage: what is left of the tokens' own rate once
    the model predicts them. It compares codecs of other levels and frame rates.
    """
    store = TokenStore(tokens, "valid")
    found: dict[str, Any] = {}
    for done, config in enumerate(pipeline.config.stages, start=1):
        lm = pipeline.stage_lm(config.name)
        crops = TokenCrops(store, lm.stage, config.crop_seconds, batch_size=4, seed=0)
        rows = []
        for index in range(batches):
            batch = crops.batch(index).to(pipeline.device)
            mask = batch.target.mask
            per_level = -(lm.score(batch) * mask[:, None]).sum((0, 2)) / mask.sum()
            row = {f"level_{q}": float(value) for q, value in enumerate(per_level)}
            bits = float(per_level.sum()) / math.log(2)
            row["bits_per_second"] = bits * float(lm.stage.target.frame_rate)
            rows.append(row)
        found[config.name] = summarise(rows)
        if progress is not None:
            progress("likelihood", done, len(pipeline.config.stages))
    return found


def usable(recording: Recording, limits: PromptConfig) -> Audio | None:
    """The recording's first seconds, as many as a prompt may have; None if it cannot be used."""
    try:
        audio = read_recording(recording)
    except AudioError:
        return None
    if audio.seconds < limits.min_seconds:
        return None
    return Audio(audio.wave[: round(limits.max_seconds * audio.sample_rate)], audio.sample_rate)


def health(prompt: Tensor, continuation: Tensor, sample_rate: int) -> dict[str, float]:
    """Figures that show a silent, clipped, drifting or looping continuation."""
    loudness = _loudness(continuation, sample_rate)
    ratio = (continuation.square().mean() + 1e-12) / (prompt.square().mean() + 1e-12)
    return {
        "level_ratio_db": float(10 * torch.log10(ratio)),
        "clipped": float((continuation.abs() >= CLIPPED).float().mean()),
        "silent": float((loudness < SILENT_RMS).float().mean()),
        "spectrum_distance": _spectrum_distance(prompt, continuation),
        "loop": _loop(loudness),
    }


def _loudness(wave: Tensor, sample_rate: int) -> Tensor:
    """RMS of pieces of 50 ms."""
    piece = sample_rate // 20
    count = max(1, wave.shape[0] // piece)
    return wave[: count * piece].reshape(count, -1).square().mean(1).sqrt()


def _spectrum_distance(a: Tensor, b: Tensor) -> float:
    spectra = []
    for wave in (a, b):
        window = torch.hann_window(512)
        stft = torch.stft(wave, 512, 256, window=window, return_complex=True)
        spectra.append(stft.abs().mean(1).clamp_min(1e-5).log10())
    return float((spectra[0] - spectra[1]).abs().mean())


def _loop(loudness: Tensor) -> float:
    """Largest autocorrelation of the loudness curve at lags a loop would have."""
    curve = loudness - loudness.mean()
    power = float(curve @ curve)
    first, last = (round(20 * seconds) for seconds in PEAK_SEARCH_SECONDS)
    if power < 1e-12 or curve.shape[0] <= 2 * first:
        return 0.0
    lags = range(first, min(last, curve.shape[0] // 2))
    return max((float(curve[lag:] @ curve[:-lag]) / power for lag in lags), default=0.0)
