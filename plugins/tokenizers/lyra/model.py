"""Lyra V2 as an acoustic codec: SoundStream (Zeghidour et al., arXiv 2107.03312) for speech.

Its models are files of TensorFlow Lite and run on the CPU; there is nothing to train. Encoder and
decoder carry a state from frame to frame: rows are taken one by one, each from a state of silence.

A level joins two of Lyra's quantizers of 16 codes, so that a stage predicts fewer, larger tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from segue.core.errors import CheckpointError
from segue.core.interfaces import (
    AcousticCodec,
    Ids,
    Lengths,
    StreamingDecoder,
    StreamingEncoder,
    Tokens,
    Wave,
)
from segue.plugins.tokenizers.lyra.config import (
    CODES_PER_QUANTIZER,
    FILES,
    FRAME_SIZE,
    LyraOptions,
    find,
    model_path,
)
from segue.plugins.tokenizers.lyra.runtime import Array, LyraRuntime, Stateful


class LyraCodec(AcousticCodec):
    """Runs Lyra's models as they are; their files' content is what it stores.

    Args:
        config: options; those that are kept say what was found at ``weights``.
    """

    needs_training = False
    config: LyraOptions

    def __init__(self, config: LyraOptions) -> None:
        found = config.found or find(config.weights)
        super().__init__(config.model_copy(update={"found": found}))
        for name, file in found.items():
            content = torch.zeros(file.size, dtype=torch.uint8)
            if config.found is None:
                content = _content(model_path(config.weights, name).read_bytes())
            self.register_buffer(name, content)
        self._runtime = _Made()
        self.register_load_state_dict_post_hook(_forget)  # type: ignore[no-untyped-call]

    @property
    def can_stream(self) -> bool:
        return True

    def streaming_decoder(self) -> StreamingDecoder:
        return LyraDecoderStream(self.runtime)

    def streaming_encoder(self) -> StreamingEncoder:
        return LyraEncoderStream(self)

    @property
    def runtime(self) -> LyraRuntime:
        """The models, made when they are first used.

        Raises:
            CheckpointError: if the codec has no weights, or LiteRT cannot run them.
        """
        if self._runtime.made is None:
            if not any(bool(getattr(self, name).any()) for name in FILES):
                raise CheckpointError(
                    type(self).__name__, "has no weights yet", "load those that it was saved with"
                )
            models = {name: _bytes(getattr(self, name)) for name in FILES}
            self._runtime.made = LyraRuntime(models)
        return self._runtime.made

    def token_state(self) -> Mapping[str, Tensor]:
        """Nothing as long as the files are those that were found: the options' hashes stand for
        them. All of them otherwise."""
        assert self.config.found is not None
        same = all(
            hashlib.sha256(_bytes(getattr(self, name))).hexdigest() == file.sha256
            for name, file in self.config.found.items()
        )
        return {} if same else self.state_dict()

    @torch.no_grad()
    def encode(self, wave: Wave, lengths: Lengths) -> Tokens:
        rows = [
            self.encode_row(row[:length], self.runtime.encoder())
            for row, length in zip(wave, lengths.tolist(), strict=True)
        ]
        none = Tokens.empty(0, self.spec.num_levels, wave.device)
        return Tokens.stack(rows) if rows else none

    def encode_row(self, wave: Float[Tensor, "T"], encoder: Stateful) -> Int64[Tensor, "Q N"]:
        """Codes of one row after what ``encoder`` has seen; zeros fill up the last frame."""
        if wave.shape[0] == 0:
            return torch.zeros(self.spec.num_levels, 0, dtype=torch.long, device=wave.device)
        whole = torch.nn.functional.pad(wave.float(), (0, -wave.shape[0] % FRAME_SIZE))
        codes = self.runtime.encode(whole.cpu().numpy(), self.config.num_quantizers, encoder)
        return torch.from_numpy(_join(codes)).to(wave.device)

    @torch.no_grad()
    def decode(self, codes: Ids, lengths: Lengths) -> Wave:
        wave = torch.zeros(codes.shape[0], codes.shape[2] * FRAME_SIZE)
        for row, (ids, frames) in enumerate(zip(codes, lengths.tolist(), strict=True)):
            if frames:
                made = self.runtime.decode(_split(ids[:, :frames]), self.runtime.decoder())
                wave[row, : frames * FRAME_SIZE] = torch.from_numpy(made)
        return wave.to(codes.device)


class LyraDecoderStream(StreamingDecoder):
    """One decoder per row, which remembers all frames since the stream began."""

    def __init__(self, runtime: LyraRuntime) -> None:
        self._runtime = runtime
        self._decoders: list[Stateful] = []
        self._device = torch.device("cpu")

    def push(self, codes: Ids) -> Wave:
        self._device = codes.device
        if not self._decoders:
            self._decoders = [self._runtime.decoder() for _ in codes]
        if codes.shape[2] == 0:
            return torch.zeros(codes.shape[0], 0, device=codes.device)
        rows = zip(codes, self._decoders, strict=True)
        made = [self._runtime.decode(_split(row), decoder) for row, decoder in rows]
        return torch.from_numpy(np.stack(made)).to(codes.device)

    def finish(self) -> Wave:
        rows, self._decoders = len(self._decoders), []
        return torch.zeros(rows, 0, device=self._device)


class LyraEncoderStream(StreamingEncoder):
    """One encoder per row; what does not fill a frame waits for more."""

    def __init__(self, codec: LyraCodec) -> None:
        self._codec = codec
        self._encoders: list[Stateful] = []
        self._waiting = torch.zeros(0, 0)

    def push(self, wave: Wave) -> Ids:
        if not self._encoders:
            self._encoders = [self._codec.runtime.encoder() for _ in wave]
            self._waiting = wave[:, :0]
        wave = torch.cat([self._waiting, wave], dim=1)
        whole = wave.shape[1] // FRAME_SIZE * FRAME_SIZE
        self._waiting = wave[:, whole:]
        return self._codes(wave[:, :whole])

    def finish(self) -> Ids:
        codes = self._codes(self._waiting)
        self._encoders, self._waiting = [], torch.zeros(0, 0)
        return codes

    def _codes(self, wave: Wave) -> Ids:
        if not self._encoders:
            return torch.zeros(0, self._codec.spec.num_levels, 0, dtype=torch.long)
        rows = zip(wave, self._encoders, strict=True)
        return torch.stack([self._codec.encode_row(row, encoder) for row, encoder in rows])


class _Made:
    """What is made of the weights when it is needed; a copy of a codec makes its own."""

    def __init__(self) -> None:
        self.made: LyraRuntime | None = None

    def __deepcopy__(self, memo: object) -> _Made:
        return _Made()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Made, ()


def _forget(codec: LyraCodec, _: object) -> None:
    codec._runtime = _Made()


def _content(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())


def _bytes(content: Tensor) -> bytes:
    return content.cpu().numpy().tobytes()


def _join(codes: Array) -> Array:
    """Codes of the levels ``[q, n]`` from those of the quantizers ``[2q, n]``."""
    return codes[::2].astype(np.int64) * CODES_PER_QUANTIZER + codes[1::2]


def _split(ids: Tensor) -> Array:
    """Codes of the quantizers ``[2q, n]`` from those of the levels ``[q, n]``."""
    levels = ids.cpu().numpy()
    pairs = np.stack([levels // CODES_PER_QUANTIZER, levels % CODES_PER_QUANTIZER], axis=1)
    return pairs.reshape(-1, ids.shape[1])
