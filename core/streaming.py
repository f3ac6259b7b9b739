"""Decode and encode chunk by chunk: the contracts, and a decoder that works for most codecs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from segue.core.tokens import Ids, Tokens, Wave

if TYPE_CHECKING:
    from segue.core.interfaces import AcousticCodec


class StreamingDecoder(ABC):
    """Turn codes into audio chunk by chunk. Each instance holds the state of one stream."""

    @abstractmethod
    def push(self, codes: Ids) -> Wave:
        """Take ``[B, q, n]`` further frames; return the samples now certain ``[B, t]``."""

    @abstractmethod
    def finish(self) -> Wave:
        """Return the samples still withheld and reset the decoder for a new stream."""


class StreamingEncoder(ABC):
    """Turn audio into codes chunk by chunk. Each instance holds the state of one stream."""

    @abstractmethod
    def push(self, wave: Wave) -> Ids:
        """Take ``[B, t]`` further samples; return the frames now certain ``[B, Q, n]``."""

    @abstractmethod
    def finish(self) -> Ids:
        """Return the frames still withheld, with the last partial one, and reset the encoder."""


class WindowedDecoder(StreamingDecoder):
    """Decode in chunks with any codec whose decoder has a finite receptive field."""

    def __init__(self, codec: AcousticCodec, left: int, right: int) -> None:
        self._codec = codec
        self._left, self._right = left, right
        self._codes: Tensor | None = None  # context, then frames whose samples are withheld
        self._emitted = 0  # frames of self._codes whose samples were returned

    def push(self, codes: Ids) -> Wave:
        known = codes if self._codes is None else torch.cat([self._codes, codes], dim=2)
        # The samples of a frame also depend on ``right`` frames after it, so they wait for those.
        return self._advance(known, known.shape[2] - self._right)

    def finish(self) -> Wave:
        if self._codes is None:
            return torch.zeros(0, 0)
        rest = self._advance(self._codes, self._codes.shape[2])
        self._codes, self._emitted = None, 0
        return rest

    def _advance(self, known: Ids, until: int) -> Wave:
        """Return the samples of frames up to ``until`` that were not returned before."""
        size = self._codec.spec.frame_size
        if until <= self._emitted:
            self._codes = known
            return torch.zeros(known.shape[0], 0, device=known.device)
        # The ``left`` frames of context are decoded again: no state is kept inside the codec.
        wave = self._codec.decode(known, Tokens.full(known).lengths)
        chunk = wave[:, self._emitted * size : until * size]
        # Keep what later frames still see to their left.
        drop = max(0, until - self._left)
        self._codes, self._emitted = known[:, :, drop:], until - drop
        return chunk
