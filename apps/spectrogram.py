"""Draw audio as a spectrogram picture."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segue.core.errors import OutputError
from segue.core.files import atomic_path, check_writable

if TYPE_CHECKING:
    from segue.inference.request import GeneratedAudio

WINDOW_SECONDS, OVERLAP, FLOOR_DB = 0.032, 0.75, -90
ROW_INCHES, MOST_FILES = 1.7, 100  # height of each row, and most rows
DOTS_PER_INCH = 110
COLUMNS = 2000  # of a waveform; more cannot be seen


def check_picture(path: Path) -> None:
    """Raise ``OutputError`` if no picture can be drawn and written under this name."""
    if path.suffix.lower() != ".png":
        raise OutputError(str(path), f"the suffix {path.suffix!r} is not .png", "name a .png file")
    if find_spec("matplotlib") is None:
        raise OutputError(str(path), "drawing needs matplotlib", "pip install 'segue[plot]'")
    check_writable(path)


@contextmanager
def new_picture(
    output: Path, rows: int, columns: int, size: tuple[float, float], **layout: Any
) -> Iterator[list[Any]]:
    """Yield empty panels; write the picture when they are drawn."""
    check_picture(output)
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(
        rows, columns, figsize=size, squeeze=False, layout="constrained", **layout
    )
    try:
        yield list(grid.flat)
        with atomic_path(output) as temporary, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")  # a title in any script
            figure.savefig(temporary, dpi=DOTS_PER_INCH, format="png")
    finally:
        pyplot.close(figure)


def draw_spectrogram(audio: GeneratedAudio, path: Path, title: str, row: int = 0) -> None:
    """Draw one row as a PNG, with a line where the prompt ends, or raise ``OutputError``."""
    wave, rate = audio.row(row).numpy(), audio.sample_rate
    with new_picture(path, 2, 1, (11, 5), sharex=True, height_ratios=(1, 3)) as (top, bottom):
        draw_waveform(wave, rate, top, "black")
        draw_spectrum(wave, rate, bottom)
        top.set_ylabel("amplitude")
        top.set_title(_printable(title), parse_math=False)
        bottom.set_ylabel("Hz")
        bottom.set_xlabel("seconds")
        bottom.set_xlim(0, len(wave) / rate)
        boundary = int(audio.prompt_samples[row]) / rate
        for axis in (top, bottom):
            axis.axvline(boundary, color="tab:cyan", linewidth=1.2)
        bottom.annotate(" continuation", (boundary, rate * 0.46), color="white")


def draw_spectrograms(
    files: Sequence[Path], output: Path, marks: Sequence[float] = (), seconds: float | None = None
) -> None:
    """Draw audio files as a PNG, one spectrogram below the other on one time scale.

    Args:
        marks: seconds at which to draw a line, such as where prompts end.
        seconds: from the start that are shown; None: all.

    Raises:
        AudioError: if a file cannot be read.
        OutputError: if matplotlib is missing or the picture cannot be written.
    """
    from segue.sound.reading import read_audio

    check_picture(output)  # before any file is read
    if len(files) > MOST_FILES:
        raise OutputError(str(output), f"would show {len(files)} files", f"name {MOST_FILES}")
    audio = [read_audio(file, first_seconds=seconds) for file in files]
    size = (11, 0.6 + ROW_INCHES * len(files))
    with new_picture(output, len(files), 1, size, sharex=True) as panels:
        for axis, file, one in zip(panels, files, audio, strict=True):
            draw_spectrum(one.wave.numpy(), one.sample_rate, axis)
            axis.set_ylabel("Hz")
            axis.set_title(_printable(file.name), parse_math=False, fontsize="small")
            for mark in marks:
                axis.axvline(mark, color="tab:cyan", linewidth=1.2)
        panels[-1].set_xlabel("seconds")
        panels[-1].set_xlim(0, max(one.seconds for one in audio))


def _printable(title: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in title)


def draw_waveform(wave: Any, rate: int, axis: Any, color: str) -> None:
    """Draw the lowest and highest sample of each of ``COLUMNS`` stretches of a wave ``[T]``."""
    import numpy

    edges = numpy.linspace(0, len(wave), min(COLUMNS, len(wave)) + 1).astype(int)
    low = numpy.minimum.reduceat(wave, edges[:-1])
    high = numpy.maximum.reduceat(wave, edges[:-1])
    axis.fill_between(edges[:-1] / rate, low, high, linewidth=0.4, color=color)
    axis.set_ylim(-1, 1)


def draw_spectrum(wave: Any, rate: int, axis: Any) -> None:
    """Draw the spectrogram of a wave ``[T]``."""
    import numpy

    window = round(WINDOW_SECONDS * rate)
    # At least two windows, and no exact silence: the logarithm of zero does not exist.
    audible = numpy.pad(wave, (0, max(0, 2 * window - len(wave))))
    audible = audible + numpy.random.default_rng(0).normal(scale=1e-7, size=audible.shape)
    axis.specgram(
        audible,
        NFFT=window,
        Fs=rate,
        noverlap=int(OVERLAP * window),
        vmin=FLOOR_DB - 30,
        vmax=-30,
        cmap="magma",
    )
