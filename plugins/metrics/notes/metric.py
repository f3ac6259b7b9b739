"""Compute statistics of the notes of continuations, from a transcription."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from segue.core.metrics import Continuation, ContinuationMetric, Measured, Note
from segue.plugins.metrics.distances import jensen_shannon
from segue.plugins.metrics.music.keys import CLASSES, key_figures
from segue.plugins.metrics.music.timing import CHORD_SECONDS, joined, timing_figures
from segue.plugins.metrics.notes.config import NotesOptions
from segue.plugins.metrics.notes.transcription import Transcriber

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
        heard = [
            tuple(
                self._transcriber(wave, record.sample_rate)
                for wave in (record.prompt, record.continuation, record.truth)
            )
            for record in records
        ]
        rows = []
        for record, (prompt, ours, truth) in zip(records, heard, strict=True):
            foreign = [
                class_counts(notes[2])
                for other, notes in zip(records, heard, strict=True)
                if other.group != record.group
            ]
            rows.append(_row(record, prompt, ours, truth, foreign))
        return Measured(rows)


def _row(
    record: Continuation,
    prompt: Sequence[Note],
    ours: Sequence[Note],
    truth: Sequence[Note],
    foreign: Sequence[Float[Tensor, "12"]],
) -> dict[str, float]:
    three = (prompt, ours, truth)
    classes = [class_counts(notes) for notes in three]
    onsets = [[note.start for note in notes] for notes in three]
    chords = [joined(starts) for starts in onsets]
    by_note = timing_figures(onsets[0], onsets[1], onsets[2], record.seconds)
    density = {name: value for name, value in by_note.items() if "interval" not in name}
    leaps = [leap_counts(notes) for notes in three]
    return {
        **key_figures(classes[0], classes[1], classes[2], foreign),
        **timing_figures(chords[0], chords[1], chords[2], record.seconds),
        **density,
        "leap_distance": jensen_shannon(leaps[0], leaps[1]),
        "truth_leap_distance": jensen_shannon(leaps[0], leaps[2]),
        "leap_distance_to_truth": jensen_shannon(leaps[1], leaps[2]),
        "mean_pitch": _mean_pitch(ours),
        "truth_mean_pitch": _mean_pitch(truth),
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
