"""Read the audio of a recording from any place: whole, or only the part that is needed."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int16
from torch import Tensor

from segue.core.audio import Audio
from segue.core.errors import AudioError
from segue.core.spec import LOUDEST
from segue.data.places import Section, is_url, open_bytes, read_range
from segue.data.recordings import WHOLE_FILE, Recording
from segue.sound.open_audio import OpenAudio
from segue.sound.opening import decoding
from segue.sound.reader import SoundReader

READ_WHOLE = 1 << 24  # bytes: up to here a tar's member is fetched by one read


@contextmanager
def open_recording(recording: Recording) -> Iterator[OpenAudio]:
    """Open a recording by its header; raise ``AudioError``, here or in the block."""
    place = recording.place
    try:
        with ExitStack() as stack:
            with decoding(place):
                raw = stack.enter_context(_bytes_of(recording))
                sound = stack.enter_context(SoundReader(raw))
            stretch = recording.start, recording.seconds, recording.channel
            opened = OpenAudio(sound, place, *stretch, LOUDEST)
            if not opened.length:
                raise AudioError(place, "holds no sample", "name a file that holds audio")
            yield opened
    except FileNotFoundError as error:
        raise AudioError(place, "does not exist", "check the path") from error
    except OSError as error:
        problem = f"cannot be read ({error.strerror or error})"
        raise AudioError(place, problem, "check the path") from error


@contextmanager
def _bytes_of(recording: Recording) -> Iterator[Any]:
    size = recording.size
    if size != WHOLE_FILE and size <= READ_WHOLE:
        data = read_range(recording.where, recording.offset, size)
        _check_size(len(data), recording.place)
        yield io.BytesIO(data)
        return
    if size == WHOLE_FILE and not is_url(recording.where):
        name = os.fsencode(recording.where)
        _check_size(Path(recording.where).stat().st_size, recording.place)
        if Path(recording.where).is_dir():
            raise AudioError(recording.place, "is a directory", "name one audio file")
        yield name if os.name == "posix" else recording.where  # libsndfile opens it by itself
        return
    with open_bytes(recording.where) as file:
        if size != WHOLE_FILE:
            yield Section(file, recording.offset, size)
            return
        _check_size(file.seek(0, io.SEEK_END), recording.place)
        file.seek(0)
        yield file


def _check_size(size: int, place: str) -> None:
    if size == 0:
        raise AudioError(place, "is an empty file", "name a file that holds audio")


def read_recording(recording: Recording, first_seconds: float | None = None) -> Audio:
    """Read at most ``first_seconds`` of a recording at its own rate, or raise ``AudioError``."""
    with open_recording(recording) as opened:
        wanted = opened.length
        if first_seconds is not None:
            wanted = min(wanted, round(first_seconds * opened.rate))
        return Audio(opened.read(0, wanted), opened.rate)


def decoded_blocks(recording: Recording, sample_rate: int) -> Iterator[Int16[Tensor, "T"]]:
    """Yield blocks of 16-bit samples at ``sample_rate``, or raise ``AudioError``."""
    with open_recording(recording) as opened:
        yield from map(to_16_bit, opened.blocks_at(sample_rate))


def in_pieces(blocks: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """Join blocks and cut them anew into pieces of one size; the last may be shorter."""
    rest: list[Tensor] = []
    for block in blocks:
        whole = torch.cat([*rest, block])
        *pieces, last = whole.split(size)
        yield from pieces
        rest = [last]
        if len(last) == size:
            yield last
            rest = []
    yield from rest


def to_16_bit(wave: Float[Tensor, "T"]) -> Int16[Tensor, "T"]:
    return (wave.clamp(-1, 1) * 32767).round().to(torch.int16)


def from_16_bit(samples: Int16[Tensor, "... T"]) -> Float[Tensor, "... T"]:
    return samples.float() / 32767


def seconds_of(recording: Recording) -> float:
    """Return the length that a recording's header states; 0 if it cannot be read."""
    try:
        with open_recording(recording) as opened:
            return opened.length / opened.rate
    except AudioError:
        return 0.0
