"""Mark generated audio with a watermark, and look for it in files.

A lifecycle plugin: named under ``hooks:`` in a registry file, it marks everything that Segue makes,
on the command line, in Python, over HTTP and on the web page. Imports no torch before that.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from segue.core.hookspecs import hookimpl

if TYPE_CHECKING:
    from segue.core.progress import Progress
    from segue.inference.request import GeneratedAudio
    from segue.plugins.provenance.spread import Watermark

KEY_VARIABLE, DEFAULT_KEY = "SEGUE_WATERMARK_KEY", "segue"
WINDOW_SECONDS = 3  # that are looked at together, around each second
LEAST_SECONDS = 0.1  # shorter pieces are not marked
FADE_SECONDS = 0.005
#: A second is marked from this score on. Without a mark, less than one in ten thousand gets there:
#: 192 offsets are tried, each with a chance of 3 in ten million (a normal distribution beyond 5).
MARKED = 5.0


@hookimpl
def segue_after_generate(audio: GeneratedAudio) -> None:
    """Mark what is new in each row; recordings stay as they are."""
    import torch

    watermark = _watermark()
    wave, least = audio.wave.clone(), round(LEAST_SECONDS * audio.sample_rate)
    fade = torch.linspace(0, 1, round(FADE_SECONDS * audio.sample_rate))
    before = audio.metadata.get("start_sample", 0)
    for row in range(len(wave)):
        new = audio.continuation(row).cpu()
        if len(new) < least:
            continue
        added = watermark.mark(new, audio.sample_rate, before) - new
        added[: len(fade)] *= fade
        added[-len(fade) :] *= fade.flip(0)
        start = int(audio.prompt_samples[row])
        wave[row, start : start + len(new)] = (new + added).clamp(-1.0, 1.0)
    audio.wave = wave
    audio.metadata["watermark"] = "spread"


def read_watermark(path: Path, progress: Progress | None = None) -> list[float | None]:
    """Return the score of the mark around each second of a file; None where it is silent.

    Args:
        progress: called with the file and the seconds that were looked at, of how many.

    Raises:
        AudioError: if the file cannot be read.
    """
    from segue.core.audio import SILENCE
    from segue.sound.open_audio import open_audio

    found: list[float | None] = []
    watermark = _watermark()
    with open_audio(path) as opened:
        rate, seconds = opened.rate, max(1, opened.length // opened.rate)
        for second in range(seconds):
            first = max(0, min(second - WINDOW_SECONDS // 2, seconds - WINDOW_SECONDS))
            wave = opened.read(first * rate, WINDOW_SECONDS * rate)
            audible = len(wave) > LEAST_SECONDS * rate and wave.abs().max() > SILENCE
            found.append(watermark.score(wave, rate) if audible else None)
            if progress is not None:
                progress(f"{path.name}: watermark", second + 1, seconds)
    return found


def _watermark() -> Watermark:
    from segue.plugins.provenance.spread import Watermark

    return Watermark(os.environ.get(KEY_VARIABLE) or DEFAULT_KEY)
