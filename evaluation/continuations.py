"""Continue held-out recordings and measure the continuations with any metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from segue.core.audio import Audio, resample
from segue.core.errors import AudioError, DataError
from segue.core.metrics import Continuation, ContinuationMetric, SetFigure, group_numbers
from segue.core.progress import Progress
from segue.data.audio_files import read_recording
from segue.data.recordings import Recording
from segue.evaluation.failures import Failures, noted
from segue.evaluation.statistics import grouped_summary, jackknife_interval
from segue.inference.bars import tracked
from segue.inference.pipeline import Pipeline
from segue.inference.promises import check_figure, check_measured
from segue.inference.request import GeneratedAudio

Keep = Callable[[Recording, GeneratedAudio], object]

LEAST_TRUTH_SECONDS = 0.5  # a shorter rest of a recording is nothing to compare with


def evaluate_continuations(
    pipeline: Pipeline,
    recordings: Sequence[Recording],
    metrics: Mapping[str, ContinuationMetric],
    *,
    prompt_seconds: float,
    seconds: float,
    seed: int,
    progress: Progress | None = None,
    keep: Keep | None = None,
) -> dict[str, Any]:
    """Continue the start of each recording and measure what comes out.

    Args:
        metrics: by the names that their figures get.
        keep: gets each recording and its prompt with the continuation, as soon as it is made.

    Returns:
        ``items``, ``groups`` (speakers, pieces) and ``unusable`` recordings; ``metrics``: by name,
        every figure as an estimate; ``failed``: why metrics have no figures. Intervals are over
        groups: drawn anew for means, left out one by one for figures of the whole set.

    Raises:
        DataError: if no recording can be used.
    """
    records = continued(pipeline, recordings, prompt_seconds, seconds, seed, progress, keep)
    failed: Failures = {}
    return {
        "items": len(records),
        "groups": len({record.group for record in records}),
        "unusable": len(recordings) - len(records),
        "metrics": measured(records, metrics, failed, progress),
        "failed": failed,
    }


def continued(
    pipeline: Pipeline,
    recordings: Sequence[Recording],
    prompt_seconds: float,
    seconds: float,
    seed: int,
    progress: Progress | None = None,
    keep: Keep | None = None,
) -> list[Continuation]:
    """Continue the start of each recording that can be used, or raise ``DataError`` if none can."""
    records = []
    for recording in tracked(recordings, "continuations", progress):
        audio = _start(recording, prompt_seconds + seconds, pipeline.config.prompt.min_seconds)
        if audio is not None:
            cut = round(prompt_seconds * audio.sample_rate)
            made = pipeline.continue_(
                audio.wave[:cut], audio.sample_rate, seconds=seconds, seed=seed
            )
            if keep is not None:
                keep(recording, made)
            records.append(_record(made, audio, cut, recording))
    if not records:
        raise DataError("recordings", "none can be used", "check the data")
    return records


def _start(recording: Recording, seconds: float, least: float) -> Audio | None:
    try:
        audio = read_recording(recording, first_seconds=seconds)
    except AudioError:
        return None
    return audio if audio.seconds >= least else None


def _record(made: GeneratedAudio, audio: Audio, cut: int, recording: Recording) -> Continuation:
    """Pair what was made of the first ``cut`` samples of a recording with the rest of it."""
    truth = audio.wave[cut:]
    if truth.shape[0] < LEAST_TRUTH_SECONDS * audio.sample_rate:
        truth = truth[:0]
    elif audio.sample_rate != made.sample_rate:
        truth = resample(truth, audio.sample_rate, made.sample_rate)
    return Continuation(
        prompt=made.row()[: int(made.prompt_samples[0])],
        continuation=made.continuation(),
        truth=truth,
        sample_rate=made.sample_rate,
        group=recording.group,
        place=recording.place,
    )


def measured(
    records: Sequence[Continuation],
    metrics: Mapping[str, ContinuationMetric],
    failed: Failures,
    progress: Progress | None = None,
) -> dict[str, dict[str, Any]]:
    """Compute each metric's figures as estimates, with intervals over groups.

    Args:
        failed: gets the reason of each metric that fails; it has no figures.
    """
    found = {}
    groups = [record.group for record in records]
    for name, metric in tracked(list(metrics.items()), "metrics", progress):
        with noted(name, metric, failed):
            result = check_measured(metric, metric.measure(records), len(records))
            overall = {
                figure: _overall(partial(_checked, metric, function), groups)
                for figure, function in result.overall.items()
            }
            found[name] = grouped_summary(result.rows, groups) | overall
    return found


def _checked(metric: ContinuationMetric, function: SetFigure, weights: Float[Tensor, "B"]) -> float:
    return check_figure(metric, function(weights))


def _overall(function: Any, groups: Sequence[str]) -> dict[str, Any]:
    """Estimate a figure of the whole set; it has no extremes of items."""
    members = group_numbers(groups)
    count = int(members.max()) + 1
    mean = function(torch.ones(len(groups), dtype=torch.float64))
    low, high = jackknife_interval(lambda weights: function(weights[members]), count)
    return {
        "mean": mean if math.isfinite(mean) else None,
        "low": low,
        "high": high,
        "lowest": None,
        "highest": None,
        "count": len(groups) if math.isfinite(mean) else 0,
        "groups": count,
    }
