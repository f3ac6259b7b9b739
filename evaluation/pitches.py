"""Measure what tokens reveal of the notes that sound: pitch classes, predicted by counting."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from segue.core.errors import AudioError, DataError
from segue.core.metrics import Note
from segue.core.progress import Progress
from segue.data.audio_files import read_recording
from segue.data.recordings import Recording
from segue.evaluation.representations import Representation
from segue.evaluation.statistics import summarise
from segue.inference.bars import tracked

PEDAL, DRUMS = 64, 9
SUFFIXES = (".mid", ".midi")


def find_scores(folder: Path) -> dict[str, Path]:
    """Return the MIDI files below a folder by their stems; raise ``DataError`` for twins."""
    if not folder.is_dir():
        raise DataError(str(folder), "is not a folder", "name the folder of the MIDI files")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in SUFFIXES or not path.is_file():
            continue
        if path.stem in found:
            raise DataError(
                str(folder), f"has two MIDI files called {path.stem!r}", "rename one of them"
            )
        found[path.stem] = path
    return found


def read_notes(path: Path) -> list[Note]:
    """Read every note, held as long as its key or the sustain pedal is down.

    Raises:
        DataError: if it is not a MIDI file of tracks that sound together, is cut short, or does not
            count time in beats; or if mido is not installed.
    """
    try:
        import mido
    except ImportError as error:
        raise DataError(str(path), "needs mido", "pip install 'segue[data]'") from error
    try:
        score = mido.MidiFile(path)
        if score.ticks_per_beat <= 0:
            raise ValueError("no ticks per beat")
        messages = list(score)
    except (OSError, EOFError, ValueError, LookupError, TypeError) as error:
        problem = f"is not a MIDI file ({error or 'it is cut short'})"
        raise DataError(str(path), problem, "check the file") from error
    times = accumulate(message.time for message in messages)
    events = [pair for pair in zip(times, messages, strict=True) if not pair[1].is_meta]
    # At equal times, ends come before starts; a note-on of velocity 0 is an end.
    events.sort(key=lambda event: (event[0], _starts(event[1])))
    return _sounding(events)


def _starts(message: Any) -> bool:
    """Return whether a message of mido strikes a key."""
    return message.type == "note_on" and message.velocity > 0


def _sounding(events: list[tuple[float, Any]]) -> list[Note]:
    notes: list[Note] = []
    started: dict[tuple[int, int], float] = {}  # (channel, pitch) of keys that sound
    held: dict[int, set[int]] = {}  # by channel with the pedal down: keys that were let go
    seconds = 0.0

    def stop(channel: int, pitch: int) -> None:
        start = started.pop((channel, pitch), None)
        if start is not None and seconds > start:
            notes.append(Note(pitch, start, seconds))

    for seconds, message in events:
        channel = getattr(message, "channel", DRUMS)
        if channel == DRUMS:
            continue
        if _starts(message):
            stop(channel, message.note)
            started[channel, message.note] = seconds
            held.get(channel, set()).discard(message.note)
        elif message.type in ("note_on", "note_off"):
            if channel in held:
                held[channel].add(message.note)
            else:
                stop(channel, message.note)
        elif message.is_cc(PEDAL) and message.value >= 64:
            held.setdefault(channel, set())
        elif message.is_cc(PEDAL):
            for pitch in held.pop(channel, set()):
                stop(channel, pitch)
    for channel, pitch in list(started):
        stop(channel, pitch)
    return sorted(notes, key=lambda note: (note.start, note.pitch))


CLASSES = 12
STRENGTHS = (1, 4, 16, 64, 256)  # frames of the prior that each token's counts start with
SHARES = (1.0, 0.5, 0.25)  # of what one of several levels says: they say much the same


def evaluate_pitches(
    recordings: Sequence[Recording],
    scores: Mapping[str, Path],
    representations: Sequence[Representation],
    *,
    seconds: float,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Predict which of the twelve pitch classes sound in a frame from the frame's tokens alone.

    How often each class sounds with each token is counted on every other piece; the rest is
    predicted from that, and the other way round. A piece is never predicted from its own counts.
    Counts start from the prior, at the one of ``STRENGTHS`` that reveals most. What the levels say
    (log odds beyond the prior's) is added up, each by the one of ``SHARES`` that reveals most.

    Args:
        scores: MIDI files by the stem of the recording.
        seconds: of each recording, from its start.

    Returns:
        By representation, estimates over pieces: ``bits`` that a token reveals of the 12 classes
        of its frame, taken one by one (how much shorter they can be written than from the prior;
        of ``prior_bits``), and ``f1`` and ``average_precision`` over all frames and classes.
        ``unusable`` counts recordings that have no score, or where either cannot be read.

    Raises:
        DataError: if fewer than two recordings have a score and can be read.
    """
    pieces = _pieces(recordings, scores, representations, seconds, progress)
    if len(pieces) < 2:
        raise DataError(
            "recordings",
            "fewer than two have a MIDI file and can be read",
            "check --data and --midi",
        )
    found: dict[str, Any] = {}
    for representation in representations:
        assert representation.vocabulary is not None
        tokens = [piece[representation.name] for piece in pieces]
        shares = SHARES if representation.levels > 1 else SHARES[:1]
        trials = [
            trial
            for strength in STRENGTHS
            for trial in _crossed(tokens, representation.vocabulary, strength, shares)
        ]
        figures = max(trials, key=lambda rows: sum(row["bits"] for row in rows))
        found[representation.name] = {
            **summarise(figures),
            "vocabulary": representation.vocabulary,
            "frame_rate": representation.frame_rate,
        }
    return {
        "pieces": len(pieces),
        "unusable": len(recordings) - len(pieces),
        "representations": found,
    }


def _crossed(
    tokens: Sequence[tuple[Tensor, Tensor]],
    vocabulary: int,
    strength: float,
    shares: Sequence[float],
) -> list[list[dict[str, float]]]:
    """Judge each piece by the counts of the half that it does not belong to, for each share."""
    trials: list[list[dict[str, float]]] = [[{} for _ in tokens] for _ in shares]
    for fold in (0, 1):
        known = [pair for index, pair in enumerate(tokens) if index % 2 != fold]
        chances, prior = fitted(known, vocabulary, strength)
        for index in range(fold, len(tokens), 2):
            ids, active = tokens[index]
            for trial, share in zip(trials, shares, strict=True):
                trial[index] = judged(together(chances, prior, ids, share), prior, active)
    return trials


def _pieces(
    recordings: Sequence[Recording],
    scores: Mapping[str, Path],
    representations: Sequence[Representation],
    seconds: float,
    progress: Progress | None,
) -> list[dict[str, tuple[Tensor, Tensor]]]:
    """Return, for each piece and representation, the token and the pitch classes of every frame."""
    pieces = []
    for recording in tracked(recordings, "encode", progress):
        score = scores.get(recording.path.stem)
        if score is None:
            continue
        try:
            notes = read_notes(score)
            audio = read_recording(recording, first_seconds=seconds)
        except (AudioError, DataError):
            continue
        piece = {}
        for one in representations:
            ids = one.frames(audio)
            piece[one.name] = ids, pitch_classes(notes, len(ids), one.frame_rate)
        pieces.append(piece)
    return pieces


def pitch_classes(notes: Sequence[Note], frames: int, frame_rate: float) -> Bool[Tensor, "N 12"]:
    """Return which pitch classes sound in the middle of each frame."""
    active = torch.zeros(frames, CLASSES, dtype=torch.bool)
    for note in notes:
        first, stop = (math.ceil(time * frame_rate - 0.5) for time in (note.start, note.end))
        active[max(0, first) : max(0, stop), note.pitch % CLASSES] = True
    return active


def fitted(
    pieces: Sequence[tuple[Tensor, Tensor]], vocabulary: int, strength: float
) -> tuple[Float[Tensor, "Q V 12"], Float[Tensor, "12"]]:
    """Return the chance of each class given each token of each level, and without it."""
    active = torch.cat([pair[1] for pair in pieces]).double()
    prior = (active.sum(0) + 0.5) / (len(active) + 1)
    levels = []
    for ids in torch.cat([pair[0] for pair in pieces]).T:
        counts = torch.bincount(ids, minlength=vocabulary).double()[:, None]
        sounding = torch.zeros(vocabulary, CLASSES, dtype=torch.float64).index_add_(0, ids, active)
        levels.append((sounding + strength * prior) / (counts + strength))
    return torch.stack(levels), prior


def together(
    chances: Float[Tensor, "Q V 12"], prior: Float[Tensor, "12"], ids: Int64[Tensor, "N Q"],
    share: float,
) -> Float[Tensor, "N 12"]:  # fmt: skip
    """Return the chance of each class given the tokens of all levels of a frame."""
    told = chances.logit() - prior.logit()
    levels = torch.arange(len(told))
    return (prior.logit() + share * told[levels, ids].sum(1)).sigmoid()


def judged(
    chances: Float[Tensor, "N 12"], prior: Float[Tensor, "12"], active: Bool[Tensor, "N 12"]
) -> dict[str, float]:
    """Compare the predicted chances of one piece with what sounds."""
    without, given = _bits(prior.expand(chances.shape), active), _bits(chances, active)
    right = float(((chances > 0.5) & active).sum())
    total = float((chances > 0.5).sum() + active.sum())
    return {
        "bits": without - given,
        "prior_bits": without,
        "f1": 2 * right / total if total else math.nan,
        "average_precision": average_precision(chances.flatten(), active.flatten()),
    }


def _bits(chances: Float[Tensor, "N 12"], active: Bool[Tensor, "N 12"]) -> float:
    """Return the mean bits that a frame's classes take if coded by these chances."""
    likelihood = torch.where(active, chances, 1 - chances).clamp(min=1e-9)
    return float(-likelihood.log2().sum(1).mean())


def average_precision(scores: Float[Tensor, "M"], truth: Bool[Tensor, "M"]) -> float:
    """Return the mean precision at each true entry, ties taken together; NaN if none is true."""
    if not truth.any():
        return math.nan
    order = scores.argsort(descending=True)
    scores, truth = scores[order], truth[order].double()
    last = torch.cat([scores[1:] != scores[:-1], torch.tensor([True])])
    found = truth.cumsum(0)[last]
    precision = found / (last.nonzero()[:, 0] + 1)
    gained = torch.diff(found, prepend=found.new_zeros(1))
    return float((precision * gained).sum() / found[-1])
