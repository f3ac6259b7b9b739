"""Draw prompt and continuation as a spectrogram picture."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segue.core.errors import OutputError
from segue.core.files import atomic_path

if TYPE_CHECKING:
    from segue.core.generated import GeneratedAudio

WINDOW_SECONDS, OVERLAP, FLOOR_DB = 0.032, 0.75, -90


def check_picture(path: Path) -> None:
    """Raise ``OutputError`` if no spectrogram can be drawn under this name."""
    if path.suffix.lower() != ".png":
        raise OutputError(str(path), f"the suffix {path.suffix!r} is not .png", "name a .png file")
    if find_spec("matplotlib") is None:
        raise OutputError(str(path), "drawing needs matplotlib", "pip install 'segue[plot]'")


def draw_spectrogram(audio: GeneratedAudio, path: Path, title: str, row: int = 0) -> None:
    """Write a PNG of one row, with a line where the prompt ends.

    Raises:
        OutputError: if matplotlib is missing or the file cannot be written.
    """
    check_picture(path)
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (top, bottom) = pyplot.subplots(
        2, 1, figsize=(11, 5), sharex=True, height_ratios=(1, 3), layout="constrained"
    )
    try:
        _draw(audio.row(row).numpy(), audio.sample_rate, top, bottom)
        printable = "".join(letter if letter.isprintable() else "?" for letter in title)
        top.set_title(printable, parse_math=False)
        boundary = int(audio.prompt_samples[row]) / audio.sample_rate
        for axis in (top, bottom):
            axis.axvline(boundary, color="tab:cyan", linewidth=1.2)
        bottom.annotate(" continuation", (boundary, audio.sample_rate * 0.46), color="white")
        with atomic_path(path) as temporary, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")  # a title in any script
            figure.savefig(temporary, dpi=110, format="png")
    finally:
        pyplot.close(figure)


def _draw(wave: Any, rate: int, top: Any, bottom: Any) -> None:
    """The waveform above its spectrogram."""
    import numpy

    window = round(WINDOW_SECONDS * rate)
    # At least two windows, and nowhere quite silent: there is no logarithm of zero.
    audible = numpy.pad(wave, (0, max(0, 2 * window - len(wave))))
    audible = audible + numpy.random.default_rng(0).normal(scale=1e-7, size=audible.shape)
    top.plot([index / rate for index in range(len(wave))], wave, linewidth=0.4, color="black")
    top.set_ylim(-1, 1)
    top.set_ylabel("amplitude")
    bottom.specgram(
        audible,
        NFFT=window,
        Fs=rate,
        noverlap=int(OVERLAP * window),
        vmin=FLOOR_DB - 30,
        vmax=-30,
        cmap="magma",
    )
    bottom.set_ylabel("Hz")
    bottom.set_xlabel("seconds")
