"""Train a detector of generated audio on examples."""

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
from segue.core.options import DetectorOptions
from segue.core.plugins import PluginHost
from segue.data.audio_files import from_16_bit
from segue.data.epochs import WHOLE, Share, crop_generators
from segue.data.origin_clips import Clip, trimmed
from segue.training.loop import Report, TrainingRun, train
from segue.training.saving import read_state

GAIN_DB = (-30.0, 3.0)
NOISE_DB = (-60.0, -30.0)  # relative to the signal
NOISE_SHARE = 0.3  # of rows that get noise, so that no faint trace decides alone
WARM_UP = 0.1  # largest share of a training
SAVES = 8  # checkpoints in a training


def detector_training(steps: int, learning_rate: float, seed: int) -> TrainingConfig:
    """Return the settings that detectors are trained with; batches have equal rows per origin."""
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
    """Train on the clips that are not for the test, or go on; return the last checkpoint.

    Args:
        detector: on its device; gets the weights of the last checkpoint.

    Raises:
        DataError: if every clip is kept for the test, or none is.
        DivergedError: if losses stay non-finite.
        CheckpointError: if the newest checkpoint was written with other options or settings.
    """
    own = [clip for clip in clips if not clip.tested]
    if not own or len(own) == len(clips):
        raise DataError(
            "examples",
            f"{len(own)} of {len(clips)} are for training: too few groups to hold some out",
            "give recordings of more speakers or pieces",
        )
    newest = newest_checkpoint(directory)
    if newest is not None:
        _check_same(newest, training)
    crops = OriginCrops(own, detector.config, training)
    run = TrainingRun(
        "detector", "detector", use, detector, training, directory, crops, None, host, report=report
    )
    try:
        last = train(run)
    except DivergedError as error:
        raise DivergedError("detector", error.problem, "lower --learning-rate") from error
    detector.eval()
    return last


def _check_same(newest: Path, training: TrainingConfig) -> None:
    """Refuse to go on with a training of other settings, or to take its result for this one's."""
    before = read_state(newest).get("training", {})
    for name in ("steps", "learning_rate"):
        if before.get(name) != getattr(training, name):
            raise CheckpointError(
                str(newest),
                f"was trained with {name} {before.get(name)}, not {getattr(training, name)}",
                "choose another output directory, or delete this training",
            )


@dataclass(frozen=True)
class OriginCrops:
    """Make batches of random windows, as many of each origin, at random loudness, some with noise.

    Coded ones went through any number of levels.
    """

    clips: Sequence[Clip]
    options: DetectorOptions
    training: TrainingConfig

    def __call__(self, step: int, share: Share = WHOLE) -> WaveBatch:
        size = self.training.batch_size
        rows = share.rows(size)
        window = round(self.options.window_seconds * self.options.sample_rate)
        wave, lengths = torch.zeros(len(rows), window), torch.zeros(len(rows), dtype=torch.long)
        origins = torch.tensor(rows) % len(ORIGINS)
        for index, random in enumerate(crop_generators(self.training.seed, step, rows, size)):
            clip = self.clips[int(torch.randint(len(self.clips), (), generator=random))]
            examples = clip.of(ORIGINS[int(origins[index])])
            chosen = int(torch.randint(len(examples), (), generator=random))
            whole = trimmed(from_16_bit(examples[chosen]))
            last_start = max(0, whole.shape[0] - window)
            start = int(torch.randint(last_start + 1, (), generator=random))
            piece = _disturbed(whole[start : start + window], random)
            wave[index, : piece.shape[0]], lengths[index] = piece, piece.shape[0]
        return WaveBatch(wave, lengths, origins)


def _disturbed(wave: Float[Tensor, "T"], random: torch.Generator) -> Float[Tensor, "T"]:
    """Add noise to some windows, and set a random level."""

    def between(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=random))

    if float(torch.rand((), generator=random)) < NOISE_SHARE:
        noise = torch.randn(wave.shape, generator=random) * wave.square().mean().sqrt()
        wave = wave + noise * 10 ** (between(*NOISE_DB) / 20)
    return wave * 10 ** (between(*GAIN_DB) / 20)
