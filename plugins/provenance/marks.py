"""Mark audio files with how Segue made them, and read the mark. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import soundfile

from segue.core.files import atomic_path, native

MARK = "made by Segue: "
TAKE_COMMENTS = ("WAV", "WAVEX", "RF64", "FLAC", "AIFF", "CAF")
FIELDS = ("task", "pipeline", "seed", "row", "prompt_seconds")


def said_of(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of how audio was made that a mark holds."""
    return {key: metadata[key] for key in FIELDS if key in metadata}


def stamp(path: Path, metadata: Mapping[str, Any]) -> bool:
    """Write a comment into an audio file that says how Segue made it; samples do not change.

    Returns:
        Whether it was written: only PCM in some formats can be rewritten without loss.
    """
    with soundfile.SoundFile(native(path)) as file:
        if file.format not in TAKE_COMMENTS or not file.subtype.startswith("PCM_"):
            return False
        # As whole numbers: PCM of up to 32 bits is written back bit by bit.
        samples = file.read(dtype="int32", always_2d=True)
        rate, form, subtype = file.samplerate, file.format, file.subtype
    with (
        atomic_path(path) as temporary,
        soundfile.SoundFile(
            native(temporary), "w", rate, samples.shape[1], subtype, format=form
        ) as file,
    ):
        file.comment = MARK + json.dumps(said_of(metadata), default=str)
        file.software = "Segue"
        file.write(samples)
    return True


def read_stamp(path: Path) -> dict[str, Any] | None:
    """Return how Segue made a file, as its comment says, or None without such a comment.

    Anyone can remove or write a comment: it is a label, not a proof.
    """
    with soundfile.SoundFile(native(path)) as file:
        comment = str(file.comment)
    if not comment.startswith(MARK):
        return None
    try:
        said = json.loads(comment.removeprefix(MARK))
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}
