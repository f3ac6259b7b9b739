"""Train a detector on examples, and measure it on speakers or pieces it has not heard."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from segue.core.audio import Audio
from segue.core.detection.examples import Clip, as_float
from segue.core.detection.verdict import judge
from segue.core.errors import DataError, TrainingError
from segue.core.evaluation.statistics import grouped_summary
from segue.core.interfaces import ORIGINS, Detector, WaveBatch
from segue.core.progress import Progress

TRIM = 10 ** (-40 / 20)  # of the peak: what is quieter at either end is cut off
GAIN_DB = (-30.0, 3.0)
NOISE_DB = (-60.0, -30.0)  # against the signal
NOISE_SHARE = 0.3  # of rows that get noise, so that no faint trace decides alone
WARM_UP = 50


@dataclass(frozen=True)
class DetectorTraining:
    """How a detector is trained.

    Attributes:
        steps: optimisation steps.
        batch_size: rows, as many of each origin.
        learning_rate: of AdamW, at its highest; it falls to 0 along a cosine.
        weight_decay: of AdamW.
        seed: of weights, crops and disturbances.
    """

    steps: int = 600
    batch_size: int = 30
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    seed: int = 0


def train_detector(
    detector: Detector,
    clips: Sequence[Clip],
    training: DetectorTraining,
    progress: Progress | None = None,
) -> list[float]:
    """Learn from the clips that are not kept for the test; returns the losses.

    Raises:
        DataError: if every clip is kept for the test, or none is.
        TrainingError: if the loss is no longer finite.
    """
    learnt = [clip for clip in clips if not clip.tested]
    if not learnt or len(learnt) == len(clips):
        raise DataError(
            "examples",
            f"{len(learnt)} of {len(clips)} are to learn from: too few groups to hold some out",
            "give recordings of more speakers or pieces",
        )
    random = torch.Generator().manual_seed(training.seed)
    optimiser = torch.optim.AdamW(
        detector.parameters(), training.learning_rate, weight_decay=training.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: _rate(s, training.steps))
    detector.train()
    losses = []
    for step in range(1, training.steps + 1):
        batch, origins = _batch(learnt, detector, training.batch_size, random)
        loss = detector.origin_loss(batch, origins)
        if not torch.isfinite(loss):
            fix = "lower --learning-rate"
            raise TrainingError("detector", f"the loss is {loss.item()} at step {step}", fix)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        if progress is not None:
            progress("detector", step, training.steps)
    detector.eval()
    return losses


def _rate(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps))


def _batch(
    clips: Sequence[Clip], detector: Detector, size: int, random: torch.Generator
) -> tuple[WaveBatch, Tensor]:
    """Random windows, as many of each origin, at random levels, some with a little noise."""
    window = round(detector.config.window_seconds * detector.config.sample_rate)
    rows, lengths = torch.zeros(size, window), torch.zeros(size, dtype=torch.long)
    origins = torch.arange(size) % len(ORIGINS)
    for row in range(size):
        clip = clips[int(torch.randint(len(clips), (), generator=random))]
        wave = trimmed(as_float(clip.waves[int(origins[row])]))
        spare = max(0, wave.shape[0] - window)
        start = int(torch.randint(spare + 1, (), generator=random))
        piece = _disturbed(wave[start : start + window], random)
        rows[row, : piece.shape[0]], lengths[row] = piece, piece.shape[0]
    device = detector.device
    return WaveBatch(rows.to(device), lengths.to(device)), origins.to(device)


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


def evaluate_detector(detector: Detector, clips: Sequence[Clip]) -> dict[str, Any]:
    """Accuracy on the clips that are kept for the test, by pairs of origins.

    An item is right if the likeliest of all three origins is its own, in each pair as well; 95 %
    intervals are drawn over groups. ``unseen`` counts groups only that the pipeline itself has not
    learnt from.
    """
    rows, groups, unseen = [], [], []
    for clip in clips:
        if clip.tested:
            rows.append(_right(detector, clip))
            groups.append(clip.group)
            unseen.append(clip.unseen)
    if not rows:
        raise DataError("examples", "none is kept for the test", "give recordings of more groups")
    report: dict[str, Any] = {"items": len(rows), "figures": _summary(rows, groups)}
    chosen = [index for index, value in enumerate(unseen) if value]
    if chosen:
        report["unseen_items"] = len(chosen)
        report["unseen"] = _summary(
            [rows[index] for index in chosen], [groups[index] for index in chosen]
        )
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


def _right(detector: Detector, clip: Clip) -> dict[str, float]:
    right = {}
    for origin, samples in zip(ORIGINS, clip.waves, strict=True):
        audio = Audio(trimmed(as_float(samples)), detector.config.sample_rate)
        probability = judge(detector, audio, clip.group).probability
        right[origin] = float(max(probability, key=lambda name: probability[name]) == origin)
    return {
        "generated against real": (right["generated"] + right["real"]) / 2,
        "generated against coded": (right["generated"] + right["coded"]) / 2,
        "coded against real": (right["coded"] + right["real"]) / 2,
        **{f"{origin} told as such": value for origin, value in right.items()},
    }
