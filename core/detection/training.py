"""Train a detector on examples, and measure it on speakers or pieces it has not heard."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from segue.core.audio import Audio
from segue.core.config.schema import TrainingConfig
from segue.core.data.share import WHOLE, Share, row_generators
from segue.core.detection.disturbances import Disturbance, disturbances
from segue.core.detection.examples import Clip, as_float
from segue.core.detection.verdict import judge
from segue.core.errors import AudioError, CheckpointError, DataError, DivergedError
from segue.core.evaluation.statistics import grouped_summary
from segue.core.interfaces import ORIGINS, Detector, WaveBatch
from segue.core.manager import PluginHost
from segue.core.options import DetectorOptions
from segue.core.progress import Progress
from segue.core.training.checkpoints import newest_checkpoint, training_of
from segue.core.training.loop import Report, TrainingRun, train

TRIM = 10 ** (-40 / 20)  # of the peak: what is quieter at either end is cut off
GAIN_DB = (-30.0, 3.0)
NOISE_DB = (-60.0, -30.0)  # against the signal
NOISE_SHARE = 0.3  # of rows that get noise, so that no faint trace decides alone
WARM_UP = 0.1  # of a training, at most
SAVES = 8  # of a training


def detector_training(steps: int, learning_rate: float, seed: int) -> TrainingConfig:
    """How detectors are trained: as many rows of each origin."""
    return TrainingConfig(
        steps=steps, batch_size=30, learning_rate=learning_rate, seed=seed,
        warmup_steps=min(50, round(WARM_UP * steps)), save_every=max(1, steps // SAVES), best=0,
    )  # fmt: skip


def train_detector(
    detector: Detector,
    use: str,
    clips: Sequence[Clip],
    training: TrainingConfig,
    directory: Path,
    host: PluginHost,
    report: Report | None = None,
) -> Path:
    """Learn from the clips that are not kept for the test, or go on with it.

    Args:
        use: the detector's registered name.
        directory: of checkpoints and the log.

    Returns:
        The directory of the last checkpoint, whose weights the detector has.

    Raises:
        DataError: if every clip is kept for the test, or none is.
        DivergedError: if losses stay non-finite.
        CheckpointError: if the newest checkpoint was written with other options or settings.
    """
    learnt = [clip for clip in clips if not clip.tested]
    if not learnt or len(learnt) == len(clips):
        raise DataError(
            "examples",
            f"{len(learnt)} of {len(clips)} are to learn from: too few groups to hold some out",
            "give recordings of more speakers or pieces",
        )
    crops = OriginCrops(learnt, detector.config, training)
    newest = newest_checkpoint(directory)
    if newest is not None:
        _check_same(newest, training)
    try:
        last = train(
            TrainingRun(
                "detector", "detector", use, detector, training, directory, crops, None, host,
                report=report,
            )
        )  # fmt: skip
    except DivergedError as error:
        raise DivergedError("detector", error.problem, "lower --learning-rate") from error
    detector.eval()
    return last


def _check_same(newest: Path, training: TrainingConfig) -> None:
    """Refuse to go on with, or to take for its own, what was trained otherwise."""
    before = training_of(newest)
    for name in ("steps", "learning_rate"):
        if before.get(name) != getattr(training, name):
            raise CheckpointError(
                str(newest),
                f"was trained with {name} {before.get(name)}, not {getattr(training, name)}",
                "choose another output directory, or delete this training",
            )


@dataclass(frozen=True)
class OriginCrops:
    """Batches of random windows, as many of each origin, at random levels, some with a little
    noise."""

    clips: Sequence[Clip]
    options: DetectorOptions
    training: TrainingConfig

    def __call__(self, step: int, share: Share = WHOLE) -> WaveBatch:
        size = self.training.batch_size
        rows = share.rows(size)
        window = round(self.options.window_seconds * self.options.sample_rate)
        wave, lengths = torch.zeros(len(rows), window), torch.zeros(len(rows), dtype=torch.long)
        origins = torch.tensor(rows) % len(ORIGINS)
        draws = row_generators(self.training.seed, step, rows, size)
        for index, random in enumerate(draws):
            clip = self.clips[int(torch.randint(len(self.clips), (), generator=random))]
            whole = trimmed(as_float(clip.waves[int(origins[index])]))
            spare = max(0, whole.shape[0] - window)
            start = int(torch.randint(spare + 1, (), generator=random))
            piece = _disturbed(whole[start : start + window], random)
            wave[index, : piece.shape[0]], lengths[index] = piece, piece.shape[0]
        return WaveBatch(wave, lengths, origins)


def trimmed(wave: Float[Tensor, "T"]) -> Float[Tensor, "T"]:
    """Without the quiet at both ends, which says where audio was cut rather than what made it."""
    loud = (wave.abs() > TRIM * wave.abs().max()).nonzero()
    return wave[int(loud[0]) : int(loud[-1]) + 1] if len(loud) else wave


def _disturbed(wave: Float[Tensor, "T"], random: torch.Generator) -> Float[Tensor, "T"]:
    def between(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=random))

    if float(torch.rand((), generator=random)) < NOISE_SHARE:
        noise = torch.randn(wave.shape, generator=random) * wave.square().mean().sqrt()
        wave = wave + noise * 10 ** (between(*NOISE_DB) / 20)
    return wave * 10 ** (between(*GAIN_DB) / 20)


def evaluate_detector(
    detector: Detector, clips: Sequence[Clip], progress: Progress | None = None
) -> dict[str, Any]:
    """Accuracy on the clips that are kept for the test, by pairs of origins.

    An item is right if the likeliest of all three origins is its own, in each pair as well; 95 %
    intervals are drawn over groups. ``unseen`` counts groups only that the pipeline itself has not
    learnt from; ``disturbed`` has the same for each of the ``disturbances`` that can be had here.
    What is then too quiet to be judged is not right. ``left_out`` names the others.
    """
    tested = [clip for clip in clips if clip.tested]
    if not tested:
        raise DataError("examples", "none is kept for the test", "give recordings of more groups")
    rows, groups = [_right(detector, clip) for clip in tested], [clip.group for clip in tested]
    report: dict[str, Any] = {"items": len(rows), "figures": _summary(rows, groups)}
    chosen = [index for index, clip in enumerate(tested) if clip.unseen]
    if chosen:
        report["unseen_items"] = len(chosen)
        report["unseen"] = _summary(
            [rows[index] for index in chosen], [groups[index] for index in chosen]
        )
    tried, report["left_out"] = disturbances(detector.config.sample_rate)
    report["disturbed"] = {}
    for done, (name, disturb) in enumerate(tried.items(), start=1):
        disturbed = [_right(detector, clip, disturb) for clip in tested]
        report["disturbed"][name] = _summary(disturbed, groups)
        if progress is not None:
            progress("disturbances", done, len(tried))
    return report


def _summary(rows: Sequence[dict[str, float]], groups: Sequence[str]) -> dict[str, Any]:
    """Estimates; an interval that was drawn over groups without a mistake would have no width, so
    its low end is no higher than Wilson's (1927) for as many trials as there are groups."""
    found = grouped_summary(rows, groups)
    for figure in found.values():
        if figure["low"] is not None:
            figure["low"] = min(figure["low"], _wilson(figure["mean"], figure["groups"]))
    return found


def _wilson(share: float, count: int, z: float = 1.96) -> float:
    middle = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return (middle - spread) / (1 + z * z / count)


def _right(
    detector: Detector, clip: Clip, disturb: Disturbance = lambda wave, _: wave
) -> dict[str, float]:
    right, rate = {}, detector.config.sample_rate
    for origin, samples in zip(ORIGINS, clip.waves, strict=True):
        audio = Audio(disturb(trimmed(as_float(samples)), rate), rate)
        try:
            probability = judge(detector, audio, clip.group).probability
        except AudioError:  # too little is left of it to be judged
            right[origin] = 0.0
            continue
        right[origin] = float(max(probability, key=lambda name: probability[name]) == origin)
    return {
        "generated against real": (right["generated"] + right["real"]) / 2,
        "generated against coded": (right["generated"] + right["coded"]) / 2,
        "coded against real": (right["coded"] + right["real"]) / 2,
        **{f"{origin} told as such": value for origin, value in right.items()},
    }
