"""Transcribe notes with Basic Pitch, and measure with them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mir_eval.transcription
import numpy
import torch
from jaxtyping import Float
from torch import Tensor

from segue.core.audio import resample
from segue.core.errors import ConfigError
from segue.core.interfaces import Metric
from segue.core.metrics import Continuation, ContinuationMetric, Measured, Note
from segue.plugins.layers.distributions import CHORD_SECONDS, jensen_shannon, joined
from segue.plugins.metrics.common import (
    is_silent,
    of_each,
    of_others,
    onnx_session,
    packaged_file,
)
from segue.plugins.metrics.music import CLASSES, key_figures, timing_figures
from segue.plugins.metrics.options import NoteAccuracyOptions, NotesOptions

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
        try:
            self._session = onnx_session(path)
        except ImportError:
            raise  # the host says how to install it
        except Exception as error:  # the runtime's error classes share no documented base
            raise ConfigError(
                "notes.v1.options.model", f"{path} is not an ONNX model", "name another file"
            ) from error

    def __call__(self, wave: Float[Tensor, "T"], sample_rate: int) -> list[Note]:
        """Return the notes in order of their beginning; none for silence."""
        if is_silent(wave):
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


OCTAVE = 12


class Notes(ContinuationMetric):
    """Measure pitch classes, key, melodic intervals, density and rhythm of transcribed notes.

    Every note counts once, however long and loud. See ``key_figures`` and ``timing_figures``;
    ``density`` counts every note of a chord, times between onsets take chords as one. ``leap_...``
    are divergences (bits) of the distribution of steps between successive highest notes, from two
    octaves down to two up. All figures rest on what the transcriber hears, in the recordings, too.
    """

    domains = ("piano",)

    def __init__(self, options: NotesOptions) -> None:
        self._transcriber = Transcriber(options)

    def measure(self, records: Sequence[Continuation]) -> Measured:
        each = of_each(records, self._transcriber)
        truth = [class_counts(notes) for notes in each[2]]
        return Measured(
            [
                _row(three, records[index].seconds, of_others(records, index, truth))
                for index, three in enumerate(zip(*each, strict=True))
            ]
        )


def _row(
    three: tuple[Sequence[Note], Sequence[Note], Sequence[Note]],
    seconds: tuple[float, float, float],
    foreign: Sequence[Float[Tensor, "12"]],
) -> dict[str, float]:
    classes = [class_counts(notes) for notes in three]
    onsets = [[note.start for note in notes] for notes in three]
    chords = [joined(starts) for starts in onsets]
    by_note = timing_figures(onsets[0], onsets[1], onsets[2], seconds)
    leaps = [leap_counts(notes) for notes in three]
    return {
        **key_figures(classes[0], classes[1], classes[2], foreign),
        **timing_figures(chords[0], chords[1], chords[2], seconds),
        **{name: value for name, value in by_note.items() if "interval" not in name},
        "leap_distance": jensen_shannon(leaps[0], leaps[1]),
        "truth_leap_distance": jensen_shannon(leaps[0], leaps[2]),
        "leap_distance_to_truth": jensen_shannon(leaps[1], leaps[2]),
        "mean_pitch": _mean_pitch(three[1]),
        "truth_mean_pitch": _mean_pitch(three[2]),
    }


def class_counts(notes: Sequence[Note]) -> Float[Tensor, "12"]:
    """Count the notes of each pitch class, C first."""
    counts = torch.zeros(CLASSES, dtype=torch.float64)
    for note in notes:
        counts[note.pitch % CLASSES] += 1
    return counts


def leap_counts(notes: Sequence[Note]) -> Float[Tensor, "49"]:
    """Count the steps, in semitones, between the highest notes of successive chords."""
    tops: list[Note] = []
    for note in sorted(notes, key=lambda note: note.start):
        if tops and note.start - tops[-1].start < CHORD_SECONDS:
            if note.pitch > tops[-1].pitch:
                tops[-1] = Note(note.pitch, tops[-1].start, note.end)
        else:
            tops.append(note)
    counts = torch.zeros(4 * OCTAVE + 1, dtype=torch.float64)
    for before, after in itertools.pairwise(tops):
        step = max(-2 * OCTAVE, min(2 * OCTAVE, after.pitch - before.pitch))
        counts[step + 2 * OCTAVE] += 1
    return counts


def _mean_pitch(notes: Sequence[Note]) -> float:
    return sum(note.pitch for note in notes) / len(notes) if notes else math.nan


class NoteAccuracy(Metric):
    """Compare transcribed notes with those of the reference: F1 of notes or of onsets, 0 to 1.

    The transcriber hears both, so that its own errors count on both sides. How long notes last is
    not compared. Matching is that of mir_eval (Bay et al., ISMIR 2009).
    """

    domains = ("piano",)
    costly = True

    def __init__(self, options: NoteAccuracyOptions) -> None:
        self._options, self._transcriber = options, Transcriber(options)

    def __call__(
        self, reference: Float[Tensor, "T"], audio: Float[Tensor, "T"], sample_rate: int
    ) -> float:
        """Return the F1, or NaN if the reference has no notes."""
        expected = self._transcriber(reference, sample_rate)
        if not expected:
            return math.nan
        found = self._transcriber(audio, sample_rate)
        return note_f1(expected, found, self._options.tolerance, self._options.compare == "notes")


def note_f1(
    expected: Sequence[Note], found: Sequence[Note], tolerance: float, with_pitch: bool
) -> float:
    """Return the F1 of notes whose onsets (and by default pitches) agree."""
    if not expected or not found:
        return 0.0
    times, other_times = (
        numpy.array([(n.start, n.end) for n in notes]) for notes in (expected, found)
    )
    if not with_pitch:
        scores = mir_eval.transcription.onset_precision_recall_f1(times, other_times, tolerance)
        return float(scores[2])
    pitches, other_pitches = (
        numpy.array([440 * 2 ** ((n.pitch - 69) / 12) for n in notes])
        for notes in (expected, found)
    )
    scores = mir_eval.transcription.precision_recall_f1_overlap(
        times, pitches, other_times, other_pitches, onset_tolerance=tolerance, offset_ratio=None
    )
    return float(scores[2])
