"""Write figures, audio and spectrograms of trainings to TensorBoard, if it is installed.

Each part's folder gets a ``tensorboard`` folder: ``tensorboard --logdir runs`` shows all of them.
Another logger is a plugin that implements the same two hooks.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segue.core.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import Tensor

FOLDER = "tensorboard"
WINDOW, HOP, RANGE_DB = 512, 128, 80.0


@hookimpl
def segue_train_logged(part: str, step: int, directory: Path, figures: Mapping[str, float]) -> None:
    """Write each figure as a curve."""
    writer = _writer(directory, step)
    if writer is None:
        return
    for name, value in figures.items():
        writer.add_scalar(f"{part}/{name}", value, step)
    writer.flush()


@hookimpl
def segue_validation_audio(
    part: str, step: int, directory: Path, sample_rate: int, audio: Mapping[str, Any]
) -> None:
    """Write each row to be heard and to be seen."""
    writer = _writer(directory, step)
    if writer is None:
        return
    for name, wave in audio.items():
        for row, samples in enumerate(wave):
            tag = f"{part}/{name}_{row}"
            writer.add_audio(tag, samples.clamp(-1, 1)[None], step, sample_rate)
            writer.add_image(tag, _picture(samples), step, dataformats="HW")
    writer.flush()


def _picture(samples: Tensor) -> Tensor:
    """Return a spectrogram as an image ``[H, W]`` in [0, 1], low frequencies at the bottom."""
    import torch

    window = torch.hann_window(WINDOW)
    spectrum = torch.stft(samples, WINDOW, HOP, window=window, return_complex=True).abs()
    decibels = 20 * torch.log10(spectrum.clamp(min=1e-7))
    return ((decibels - decibels.max()) / RANGE_DB + 1).clamp(0, 1).flip(0)


#: Writers by absolute folder; a training keeps its own until the process ends.
_writers: dict[Path, Any] = {}


def _writer(directory: Path, step: int) -> Any:
    """Return the part's writer, or None without TensorBoard. Entries of a killed run beyond the
    present step are dropped."""
    if find_spec("tensorboard") is None:
        return None
    folder = (directory / FOLDER).resolve()
    if folder not in _writers or not folder.is_dir():  # deleted since, as in a notebook
        from torch.utils.tensorboard import SummaryWriter

        _writers[folder] = SummaryWriter(str(folder), purge_step=step)
    return _writers[folder]
