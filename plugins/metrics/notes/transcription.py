"""Transcribe notes with Basic Pitch (Bittner et al., arXiv 2203.09893) through ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import onnxruntime
import torch
from jaxtyping import Float
from torch import Tensor

from segue.core.audio import SILENCE, resample
from segue.core.errors import ConfigError
from segue.core.metrics import Note
from segue.plugins.metrics.notes.config import NotesOptions
from segue.plugins.metrics.packaged import packaged_file

PACKAGE, MODEL = "basic_pitch", "saved_models/icassp_2022/nmp.onnx"
# The package itself asks for a TensorFlow that new Pythons lack.
FIX = "pip install 'segue[metrics]' and then pip install --no-deps basic-pitch"
INPUT, NOTES, ONSETS = (
    "serving_default_input_2:0", "StatefulPartitionedCall:1", "StatefulPartitionedCall:2",
)  # fmt: skip
RATE, HOP, WINDOW = 22_050, 256, 43_844
EDGE = 15  # frames at both ends of a window that are not used
STEP = WINDOW - 2 * EDGE * HOP
LOWEST_PITCH = 21  # A0
GAP, SHORTEST = 11, 11  # frames that a note may fade for; of the shortest note


class Transcriber:
    """Transcribe the notes of recordings.

    Raises:
        ConfigError: if the model that the options name cannot be read.
        PluginError: if none is named and Basic Pitch is not installed.
    """

    def __init__(self, options: NotesOptions) -> None:
        self._options = options
        path = (
            Path(options.model) if options.model else packaged_file(PACKAGE, MODEL, "notes.v1", FIX)
        )
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        try:
            self._session = onnxruntime.InferenceSession(str(path), settings)
        except Exception as error:  # the runtime's error classes share no documented base
            raise ConfigError(
                "notes.v1.options.model", f"{path} is not an ONNX model", "name another file"
            ) from error

    def __call__(self, wave: Float[Tensor, "T"], sample_rate: int) -> list[Note]:
        """Return the notes in order of their beginning; none for silence."""
        if not wave.numel() or wave.abs().max() < SILENCE:
            return []
        notes, onsets, times = self._posteriors(resample(wave, sample_rate, RATE))
        found = []
        for pitch in range(notes.shape[1]):
            column = onsets[:, pitch]
            for frame in _peaks(column, self._options.onset):
                end = _end(notes[:, pitch], column, frame, self._options)
                if end - frame >= SHORTEST:
                    last = times[min(end, len(times) - 1)]
                    found.append(Note(LOWEST_PITCH + pitch, float(times[frame]), float(last)))
        return sorted(found, key=lambda note: (note.start, note.pitch))

    def _posteriors(self, wave: Float[Tensor, "T"]) -> tuple[Any, Any, Any]:
        """Return probabilities ``[N, 88]`` that a pitch sounds and that it begins, and seconds
        ``[N]``."""
        count = -(-wave.shape[0] // STEP)
        padded = torch.zeros(count * STEP + WINDOW)
        padded[EDGE * HOP :][: wave.shape[0]] = wave
        windows = padded.unfold(0, WINDOW, STEP)[:count, :, None].numpy()
        parts = [
            self._session.run([NOTES, ONSETS], {INPUT: window[None]})
            for window in windows.astype(numpy.float32)
        ]
        notes, onsets = (
            numpy.concatenate([part[index][0, EDGE:-EDGE] for part in parts]) for index in (0, 1)
        )
        inside = numpy.arange(len(notes) // count) * HOP / RATE
        times = numpy.concatenate([inside + index * STEP / RATE for index in range(count)])
        known = times < wave.shape[0] / RATE
        return notes[known], onsets[known], times[known]


def _peaks(column: Any, least: float) -> list[int]:
    padded = numpy.concatenate([[0], column, [0]])
    peaks = (padded[1:-1] >= least) & (padded[1:-1] > padded[:-2]) & (padded[1:-1] >= padded[2:])
    return [int(frame) for frame in peaks.nonzero()[0]]


def _end(sounding: Any, onsets: Any, start: int, options: NotesOptions) -> int:
    """Return the frame where a note has faded or its key is struck again."""
    quiet, last = 0, start + 1
    for frame in range(start + 1, len(sounding)):
        again = onsets[frame] >= options.onset and onsets[frame] > onsets[frame - 1]
        if again and frame - start >= SHORTEST:
            return frame
        quiet = 0 if sounding[frame] >= options.frame else quiet + 1
        if quiet >= GAP:
            break
        if not quiet:
            last = frame + 1
    return last
