"""Random crops of recordings, for what is trained on raw audio."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from segue.core.audio import read_audio, resample
from segue.core.data.manifest import Recording
from segue.core.data.share import WHOLE, Share, row_generators
from segue.core.errors import AudioError, DataError
from segue.core.interfaces import WaveBatch

MOST_TRIES = 100  # recordings that cannot be read, one after the other


class AudioCrops:
    """Batches of random crops; batch ``step`` depends on the seed and the step alone.

    That makes a resumed run see what an uninterrupted one would have seen. Decoded recordings are
    kept in memory as 16-bit samples (two hours at 16 kHz take 230 MB) up to ``cache_bytes``.
    Recordings that cannot be read are listed in ``unreadable`` and skipped.
    """

    def __init__(
        self,
        recordings: Sequence[Recording],
        sample_rate: int,
        crop_seconds: float,
        batch_size: int,
        seed: int,
        cache_bytes: int = 4 << 30,
    ) -> None:
        self._recordings = list(recordings)
        self._weights = torch.tensor([recording.seconds for recording in recordings])
        self._rate, self._batch_size, self._seed = sample_rate, batch_size, seed
        self._crop = round(crop_seconds * sample_rate)
        self._cache: dict[int, Tensor] = {}
        self._cache_left = cache_bytes
        self.unreadable: dict[str, str] = {}
        for recording in self._recordings:
            if recording.seconds <= 0:  # no crop is drawn of it
                self.unreadable[str(recording.path)] = "is missing, empty or no audio"
        if not self._weights.any():
            raise DataError("recordings", "cannot be read", self._advice())

    def batch(self, step: int, share: Share = WHOLE) -> WaveBatch:
        """The crops of one step, each longer recording contributing in proportion.

        Args:
            step: of the training.
            share: which rows of the batch are wanted.
        """
        rows = share.rows(self._batch_size)
        generators = row_generators(self._seed, step, rows, self._batch_size)
        return pad_waves([self._row(random) for random in generators])

    def _row(self, random: torch.Generator) -> Tensor:
        """A crop of a recording that can be read."""
        for _ in range(MOST_TRIES):
            index = int(torch.multinomial(self._weights, 1, generator=random))
            start = float(torch.rand(1, generator=random))
            wave = self._wave(index)
            if wave is not None and wave.numel():
                first = int(start * max(0, wave.numel() - self._crop + 1))
                return wave[first : first + self._crop].float() / 32767
        raise DataError("recordings", "cannot be read", self._advice())

    def _advice(self) -> str:
        name, problem = next(iter(self.unreadable.items()), ("every file", "is empty"))
        return f"check {name}: {problem}"

    def _wave(self, index: int) -> Tensor | None:
        if index not in self._cache:
            wave = self._decode(self._recordings[index])
            if wave is None or wave.numel() * 2 > self._cache_left:
                return wave
            self._cache[index] = wave
            self._cache_left -= wave.numel() * 2
        return self._cache[index]

    def _decode(self, recording: Recording) -> Tensor | None:
        try:
            return decode_recording(recording, self._rate)
        except AudioError as error:
            self.unreadable[str(recording.path)] = error.problem
            return None


def decode_recording(recording: Recording, sample_rate: int) -> Tensor:
    """A recording at ``sample_rate`` as 16-bit samples ``[T]``.

    Raises:
        AudioError: if it cannot be read.
    """
    audio = read_audio(recording.path)
    wave = audio.wave
    if audio.sample_rate != sample_rate:
        wave = resample(wave, audio.sample_rate, sample_rate)
    if not torch.isfinite(wave).all():
        raise AudioError(str(recording.path), "holds NaN or infinite samples", "repair the file")
    return (wave.clamp(-1, 1) * 32767).round().to(torch.int16)


def pad_waves(rows: Sequence[Tensor]) -> WaveBatch:
    """Rows of unequal length as one batch, zeros at the end."""
    lengths = torch.tensor([row.shape[0] for row in rows])
    wave = torch.zeros(len(rows), int(lengths.max()))
    for index, row in enumerate(rows):
        wave[index, : row.shape[0]] = row
    return WaveBatch(wave, lengths)


def whole_recordings(
    recordings: Sequence[Recording], sample_rate: int, max_seconds: float
) -> Iterator[WaveBatch]:
    """Each recording once, cut into pieces of at most ``max_seconds``: one pass, to fit k-means."""
    for recording in recordings:
        try:
            wave = decode_recording(recording, sample_rate)
        except AudioError:
            continue
        for piece in wave.float().div(32767).split(round(max_seconds * sample_rate)):
            yield WaveBatch(piece[None], torch.tensor([piece.shape[0]]))
