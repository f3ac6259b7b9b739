"""Draw prompt and continuation as a spectrogram picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from segue.core.errors import OutputError
from segue.core.files import atomic_path

if TYPE_CHECKING:
    from segue.core.generated import GeneratedAudio

WINDOW_SECONDS, OVERLAP, FLOOR_DB = 0.032, 0.75, -90


def draw_spectrogram(audio: GeneratedAudio, path: Path, title: str, row: int = 0) -> None:
    """Write a PNG of one row, with a line where the prompt ends.

    Raises:
        OutputError: if matplotlib is missing or the file cannot be written.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise OutputError(
            str(path), "drawing needs matplotlib", "pip install 'segue[plot]'"
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    wave = audio.row(row).numpy()
    window = round(WINDOW_SECONDS * audio.sample_rate)
    figure, (top, bottom) = pyplot.subplots(
        2, 1, figsize=(11, 5), sharex=True, height_ratios=(1, 3), layout="constrained"
    )
    times = [index / audio.sample_rate for index in range(len(wave))]
    top.plot(times, wave, linewidth=0.4, color="black")
    top.set_ylim(-1, 1)
    top.set_ylabel("amplitude")
    top.set_title(title)
    bottom.specgram(
        wave + 1e-9,
        NFFT=window,
        Fs=audio.sample_rate,
        noverlap=int(OVERLAP * window),
        vmin=FLOOR_DB - 30,
        vmax=-30,
        cmap="magma",
    )
    bottom.set_ylabel("Hz")
    bottom.set_xlabel("seconds")
    boundary = int(audio.prompt_samples[row]) / audio.sample_rate
    for axis in (top, bottom):
        axis.axvline(boundary, color="tab:cyan", linewidth=1.2)
    bottom.annotate(" continuation", (boundary, audio.sample_rate * 0.46), color="white")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    pyplot.close(figure)
