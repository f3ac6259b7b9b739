"""Train a detector on examples, and measure it on speakers or pieces it has not heard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from segue.core.checkpoint_files import newest_checkpoint
from segue.core.config import TrainingConfig
from segue.core.errors import CheckpointError, DataError, DivergedError
from segue.core.interfaces import ORIGINS, Detector, WaveBatch
from segue.core.manager import PluginHost
from segue.core.options import DetectorOptions
from segue.data.origin_clips import Clip, as_float, trimmed
from segue.data.share import WHOLE, Share, row_generators
from segue.training.checkpoints import training_of
from segue.training.loop import Report, TrainingRun, train

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


def _disturbed(wave: Float[Tensor, "T"], random: torch.Generator) -> Float[Tensor, "T"]:
    def between(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=random))

    if float(torch.rand((), generator=random)) < NOISE_SHARE:
        noise = torch.randn(wave.shape, generator=random) * wave.square().mean().sqrt()
        wave = wave + noise * 10 ** (between(*NOISE_DB) / 20)
    return wave * 10 ** (between(*GAIN_DB) / 20)
