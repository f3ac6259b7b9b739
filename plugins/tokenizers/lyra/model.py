"""Lyra V2 as an acoustic codec: SoundStream (Zeghidour et al., arXiv 2107.03312) for speech.

Its models are files of TensorFlow Lite and run on the CPU by LiteRT, frame by frame; there is
nothing to train. Encoder and decoder carry a state from frame to frame: each row starts from a new
one.

A level joins two of Lyra's quantizers of 16 codes, so that a stage predicts fewer, larger tokens.

Shape legend: B batch, T samples, N frames, Q levels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from ai_edge_litert.interpreter import Interpreter
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
    MAX_QUANTIZERS,
    LyraOptions,
    describe,
    read_models,
)

FEATURES = 64
_ABSENT = -1  # for the dequantizer: a quantizer that is not used

Array = np.ndarray[Any, np.dtype[Any]]


class LyraCodec(AcousticCodec):
    """Run Lyra's models as they are; the content of their files is what a checkpoint stores.

    Args:
        config: options; those that are kept record what was found at ``weights``.
    """

    needs_training = False
    config: LyraOptions

    def __init__(self, config: LyraOptions) -> None:
        models: dict[str, bytes] = {}
        if config.found is None:
            models = read_models(config.weights)
            config = config.model_copy(update={"found": describe(models)})
        super().__init__(config)
        assert config.found is not None
        for name, file in config.found.items():
            content = models.get(name, bytes(file.size))  # zeros until a checkpoint is loaded
            self.register_buffer(name, torch.frombuffer(bytearray(content), dtype=torch.uint8))
        self._lazy = _Lazy()
        self.register_load_state_dict_post_hook(_drop_runtime)  # type: ignore[no-untyped-call]

    @property
    def can_stream(self) -> bool:
        return True

    def streaming_decoder(self) -> StreamingDecoder:
        return LyraDecoderStream(self.runtime)

    def streaming_encoder(self) -> StreamingEncoder:
        return LyraEncoderStream(self)

    @property
    def runtime(self) -> LyraRuntime:
        """Return the models ready to run, made on first use.

        Raises:
            CheckpointError: if the codec has no weights, or LiteRT cannot run them.
        """
        if self._lazy.runtime is None:
            if not any(bool(getattr(self, name).any()) for name in FILES):
                raise CheckpointError(
                    type(self).__name__, "has no weights yet", "load those it was saved with"
                )
            self._lazy.runtime = LyraRuntime(self._models())
        return self._lazy.runtime

    def token_state(self) -> Mapping[str, Tensor]:
        """Return nothing while the files are those found: the options hold their hashes."""
        return {} if describe(self._models()) == self.config.found else self.state_dict()

    @torch.no_grad()
    def encode(self, wave: Wave, lengths: Lengths) -> Tokens:
        rows = [
            self.encode_row(row[:length], self.runtime.start("encoder"))
            for row, length in zip(wave, lengths.tolist(), strict=True)
        ]
        return Tokens.stack(rows) if rows else Tokens.empty(0, self.spec.num_levels, wave.device)

    def encode_row(self, wave: Float[Tensor, "T"], encoder: Stateful) -> Int64[Tensor, "Q N"]:
        """Return the codes of one row after what ``encoder`` saw; zeros complete the last frame."""
        if wave.shape[0] == 0:
            return torch.zeros(self.spec.num_levels, 0, dtype=torch.long, device=wave.device)
        whole = torch.nn.functional.pad(wave.float(), (0, -wave.shape[0] % FRAME_SIZE))
        codes = self.runtime.encode(whole.cpu().numpy(), self.config.num_quantizers, encoder)
        pairs = codes[::2].astype(np.int64) * CODES_PER_QUANTIZER + codes[1::2]
        return torch.from_numpy(pairs).to(wave.device)

    @torch.no_grad()
    def decode(self, codes: Ids, lengths: Lengths) -> Wave:
        wave = torch.zeros(codes.shape[0], codes.shape[2] * FRAME_SIZE)
        for row, (ids, frames) in enumerate(zip(codes, lengths.tolist(), strict=True)):
            if frames:
                made = self.runtime.decode(_split(ids[:, :frames]), self.runtime.start("decoder"))
                wave[row, : frames * FRAME_SIZE] = torch.from_numpy(made)
        return wave.to(codes.device)

    def _models(self) -> dict[str, bytes]:
        return {name: getattr(self, name).cpu().numpy().tobytes() for name in FILES}


class LyraDecoderStream(StreamingDecoder):
    """Keep one decoder per row, which remembers all frames since the stream began."""

    def __init__(self, runtime: LyraRuntime) -> None:
        self._runtime = runtime
        self._decoders: list[Stateful] = []
        self._device = torch.device("cpu")

    def push(self, codes: Ids) -> Wave:
        self._device = codes.device
        if not self._decoders:
            self._decoders = [self._runtime.start("decoder") for _ in codes]
        if codes.shape[2] == 0:
            return torch.zeros(codes.shape[0], 0, device=codes.device)
        rows = zip(codes, self._decoders, strict=True)
        made = [self._runtime.decode(_split(row), decoder) for row, decoder in rows]
        return torch.from_numpy(np.stack(made)).to(codes.device)

    def finish(self) -> Wave:
        rows, self._decoders = len(self._decoders), []
        return torch.zeros(rows, 0, device=self._device)


class LyraEncoderStream(StreamingEncoder):
    """Keep one encoder per row, and the samples of a frame that is not full yet."""

    def __init__(self, codec: LyraCodec) -> None:
        self._codec = codec
        self._encoders: list[Stateful] = []
        self._waiting = torch.zeros(0, 0)

    def push(self, wave: Wave) -> Ids:
        if not self._encoders:
            self._encoders = [self._codec.runtime.start("encoder") for _ in wave]
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


class LyraRuntime:
    """Run the three models frame by frame.

    Args:
        models: contents of the files, by the names in ``FILES``.

    Raises:
        CheckpointError: if LiteRT cannot run one of them.
    """

    def __init__(self, models: Mapping[str, bytes]) -> None:
        self._models = models
        self._quantizer = _interpreter(models["quantizer"], "quantizer")  # runners need it alive
        self._quantize = self._quantizer.get_signature_runner("encode")
        self._dequantize = self._quantizer.get_signature_runner("decode")

    def start(self, name: str) -> Stateful:
        """Return the ``encoder`` or ``decoder`` for one row or stream."""
        return Stateful(self._models[name], name)

    def encode(self, wave: Array, num_quantizers: int, encoder: Stateful) -> Array:
        """Return the codes ``[q, N]`` of ``N * FRAME_SIZE`` samples after what ``encoder`` saw."""
        count = np.array(num_quantizers, np.int32)
        frames = [
            self._quantize(
                input_frames=encoder.step(frame[None]).reshape(1, 1, FEATURES),
                num_quantizers=count,
            )["output_0"][:num_quantizers, 0, 0]
            for frame in wave.reshape(-1, FRAME_SIZE)
        ]
        return np.stack(frames, axis=1)

    def decode(self, codes: Array, decoder: Stateful) -> Array:
        """Return ``N * FRAME_SIZE`` samples of codes ``[q, N]`` after what ``decoder`` saw."""
        # Its dequantizer takes all quantizers and skips those that are absent.
        padded = np.full((codes.shape[1], MAX_QUANTIZERS, 1, 1), _ABSENT, np.int32)
        padded[:, : codes.shape[0], 0, 0] = codes.T
        frames = [
            decoder.step(self._dequantize(encoding_indices=frame)["output_0"])[0]
            for frame in padded
        ]
        return np.concatenate(frames)


class Stateful:
    """Run a model of one input and one output that remembers the frames it saw.

    Make a new one for each row, which takes a millisecond or two: LiteRT's ``reset_all_variables``
    leaves some of the state behind.
    """

    def __init__(self, content: bytes, name: str) -> None:
        self._interpreter = _interpreter(content, name)
        self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]["index"]
        self._output = self._interpreter.get_output_details()[0]["index"]

    def step(self, frame: Array) -> Array:
        """Return the output of one frame, given those before it."""
        self._interpreter.set_tensor(self._input, frame)
        self._interpreter.invoke()
        output: Array = self._interpreter.get_tensor(self._output)
        return output


class _Lazy:
    """Hold the runtime of a codec; a copied or unpickled codec makes its own."""

    def __init__(self) -> None:
        self.runtime: LyraRuntime | None = None

    def __reduce__(self) -> tuple[Any, ...]:  # used by copy.deepcopy too
        return _Lazy, ()


def _drop_runtime(codec: LyraCodec, _: object) -> None:
    codec._lazy = _Lazy()


def _interpreter(content: bytes, name: str) -> Interpreter:
    try:
        # One thread: a frame is too little work to share.
        return Interpreter(model_content=content, num_threads=1)
    except ValueError as error:
        raise CheckpointError(
            FILES[name], "is not a model that LiteRT can run", "restore the file"
        ) from error


def _split(ids: Tensor) -> Array:
    """Return the codes of the quantizers ``[2q, n]`` from those of the levels ``[q, n]``."""
    levels = ids.cpu().numpy()
    pairs = np.stack([levels // CODES_PER_QUANTIZER, levels % CODES_PER_QUANTIZER], axis=1)
    return pairs.reshape(-1, ids.shape[1])
