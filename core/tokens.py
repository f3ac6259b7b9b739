"""The batches that travel between parts: token frames, audio, and training examples of a stage.

Rows of a batch may differ in length: they are padded at the end, and ``lengths`` says how much of
each row counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional

Wave = Float[Tensor, "B T"]
Lengths = Int64[Tensor, "B"]
Ids = Int64[Tensor, "B Q N"]


@dataclass(frozen=True)
class Tokens:
    """A ragged batch of token frames.

    Attributes:
        ids: ``[B, Q, N]``, each in ``[0, V)``; padding holds 0 and means nothing.
        lengths: ``[B]``, valid frames of each row.
    """

    ids: Ids
    lengths: Lengths

    @classmethod
    def full(cls, ids: Ids) -> Tokens:
        """Return a batch in which every frame is valid."""
        return cls(ids, torch.full((ids.shape[0],), ids.shape[2], device=ids.device))

    @classmethod
    def empty(cls, batch: int, num_levels: int, device: torch.device | str = "cpu") -> Tokens:
        """Return rows without frames: the prompt of unconditional generation."""
        return cls.full(torch.zeros(batch, num_levels, 0, dtype=torch.long, device=device))

    @classmethod
    def stack(cls, rows: Sequence[Int64[Tensor, "Q N"]]) -> Tokens:
        """Pad rows of unequal length into one batch."""
        lengths = torch.tensor([row.shape[1] for row in rows], device=rows[0].device)
        ids = rows[0].new_zeros(len(rows), rows[0].shape[0], int(lengths.max()))
        for index, row in enumerate(rows):
            ids[index, :, : row.shape[1]] = row
        return cls(ids, lengths)

    @property
    def num_levels(self) -> int:
        return self.ids.shape[1]

    @property
    def mask(self) -> Bool[Tensor, "B N"]:
        """True at valid frames."""
        return torch.arange(self.ids.shape[2], device=self.ids.device) < self.lengths[:, None]

    @property
    def repeats(self) -> Bool[Tensor, "B N"]:
        """True at valid frames that equal the frame before at every level."""
        # The first frame has none before it, so it is never a repeat.
        same = (self.ids[:, :, 1:] == self.ids[:, :, :-1]).all(dim=1)
        return functional.pad(same, (1, 0)) & self.mask

    def row(self, index: int) -> Int64[Tensor, "Q N"]:
        """Return the valid frames of one row."""
        return self.ids[index, :, : int(self.lengths[index])]

    def rows(self) -> Iterator[Int64[Tensor, "Q N"]]:
        return (self.row(index) for index in range(self.ids.shape[0]))

    def levels(self, start: int, stop: int) -> Tokens:
        """Return levels ``start .. stop - 1`` of every frame."""
        return Tokens(self.ids[:, start:stop], self.lengths)

    def cut(self, lengths: Lengths) -> Tokens:
        """Keep at most ``lengths`` ``[B]`` frames of each row, and no column that all rows lack."""
        kept = torch.minimum(self.lengths, lengths)
        longest = int(kept.max()) if len(kept) else 0
        cut = Tokens(self.ids[:, :, :longest], kept)
        # Frames cut off become padding, which holds 0 everywhere.
        return Tokens(cut.ids.masked_fill(~cut.mask[:, None], 0), kept)

    def to(self, device: torch.device | str) -> Tokens:
        return Tokens(self.ids.to(device), self.lengths.to(device))

    def append(self, other: Tokens) -> Tokens:
        """Put the frames of each row of ``other`` after the valid frames of the same row here."""
        pairs = zip(self.rows(), other.rows(), strict=True)
        return Tokens.stack([torch.cat(pair, dim=1) for pair in pairs])


@dataclass(frozen=True)
class WaveBatch:
    """A ragged batch of mono audio.

    Attributes:
        wave: ``[B, T]`` in [-1, 1].
        lengths: ``[B]`` samples.
        origins: ``[B]`` indices into ``segue.core.interfaces.ORIGINS`` for training a detector,
            else None.
    """

    wave: Wave
    lengths: Lengths
    origins: Int64[Tensor, "B"] | None = None

    @classmethod
    def pad(cls, rows: Sequence[Float[Tensor, "T"]]) -> WaveBatch:
        """Pad rows of unequal length with zeros into one batch."""
        lengths = torch.tensor([row.shape[0] for row in rows])
        wave = torch.zeros(len(rows), int(lengths.max()))
        for index, row in enumerate(rows):
            wave[index, : row.shape[0]] = row
        return cls(wave, lengths)

    def to(self, device: torch.device | str) -> WaveBatch:
        origins = None if self.origins is None else self.origins.to(device)
        return WaveBatch(self.wave.to(device), self.lengths.to(device), origins)


@dataclass(frozen=True)
class StageBatch:
    """Training examples of a stage: its target and its given slices, aligned at frame 0.

    Attributes:
        target: the tokens to predict.
        given: the tokens to predict them from, one batch per given slice.
        ends: ``[B, N]``, True where a target frame is the last of its recording (not just the last
            of a crop); None if unknown.
        counted: ``[B, N]``, True at target frames whose loss counts; None counts all valid ones.
    """

    target: Tokens
    given: tuple[Tokens, ...] = ()
    ends: Bool[Tensor, "B N"] | None = None
    counted: Bool[Tensor, "B N"] | None = None

    def to(self, device: torch.device | str) -> StageBatch:
        return StageBatch(
            self.target.to(device),
            tuple(given.to(device) for given in self.given),
            None if self.ends is None else self.ends.to(device),
            None if self.counted is None else self.counted.to(device),
        )


@dataclass(frozen=True)
class StageLoss:
    """The loss of a batch: minimise ``total`` (mean nats per token); log ``per_level`` [Q]."""

    total: Float[Tensor, ""]
    per_level: Float[Tensor, "Q"]

    def named(self) -> dict[str, Tensor]:
        levels = {f"level_{q}": value.detach() for q, value in enumerate(self.per_level)}
        return {"loss": self.total, **levels}
