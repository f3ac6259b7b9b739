"""SoundStream, chunk by chunk: every layer keeps the last samples it saw.

Decoding looks nowhere ahead: n frames that are pushed are ``n * hop`` samples that come out.
Encoding withholds only the samples of a frame that is not full yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from segue.core.interfaces import Ids, StreamingDecoder, StreamingEncoder, Wave
from segue.plugins.tokenizers.soundstream.layers import Past

if TYPE_CHECKING:
    from segue.plugins.tokenizers.soundstream.model import SoundStream


class SoundStreamDecoder(StreamingDecoder):
    """Each frame's samples as soon as the frame is known."""

    def __init__(self, codec: SoundStream) -> None:
        self._codec = codec
        self._past, self._rows = Past(), 0

    @torch.no_grad()
    def push(self, codes: Ids) -> Wave:
        self._rows = codes.shape[0]
        return self._codec.synthesise(codes, self._past)

    def finish(self) -> Wave:
        """No sample: none was withheld."""
        rest = torch.zeros(self._rows, 0, dtype=self._codec.dtype, device=self._codec.device)
        self._past, self._rows = Past(), 0
        return rest


class SoundStreamEncoder(StreamingEncoder):
    """Each frame's codes as soon as its last sample is known."""

    def __init__(self, codec: SoundStream) -> None:
        self._codec = codec
        self._past = Past()
        self._waiting: Tensor | None = None  # samples of a frame that is not full yet

    @torch.no_grad()
    def push(self, wave: Wave) -> Ids:
        known = wave if self._waiting is None else torch.cat([self._waiting, wave], dim=1)
        full = known.shape[1] - known.shape[1] % self._codec.config.hop
        self._waiting = known[:, full:]
        return self._codec.analyse(known[:, :full], self._past)

    @torch.no_grad()
    def finish(self) -> Ids:
        rest = torch.zeros(0, 0) if self._waiting is None else self._waiting
        missing = -rest.shape[1] % self._codec.config.hop
        codes = self._codec.analyse(pad(rest, (0, missing)), self._past)
        self._past, self._waiting = Past(), None
        return codes
