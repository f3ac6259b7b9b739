"""Lyra's models, run frame by frame by LiteRT. Knows nothing of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from segue.core.errors import CheckpointError
from segue.plugins.tokenizers.lyra.config import FILES, FRAME_SIZE, MAX_QUANTIZERS

Array = np.ndarray[Any, np.dtype[Any]]

FEATURES = 64
_ABSENT = -1  # a quantizer that is not used, in what the dequantizer takes


class Stateful:
    """A model of one input and one output that remembers the frames it has seen.

    For each row a new one is made, which takes a millisecond or two: LiteRT's
    ``reset_all_variables`` leaves some of the state behind.
    """

    def __init__(self, content: bytes, name: str) -> None:
        self._interpreter = _interpreter(content, name)
        self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]["index"]
        self._output = self._interpreter.get_output_details()[0]["index"]

    def step(self, frame: Array) -> Array:
        """Output of one frame, given those before it."""
        self._interpreter.set_tensor(self._input, frame)
        self._interpreter.invoke()
        output: Array = self._interpreter.get_tensor(self._output)
        return output


class LyraRuntime:
    """The three models.

    Args:
        models: contents of the files, by the names in ``config.FILES``.

    Raises:
        CheckpointError: if one of them is no model that LiteRT can run.
    """

    def __init__(self, models: Mapping[str, bytes]) -> None:
        self._models = models
        quantizer = _interpreter(models["quantizer"], "quantizer")
        self._interpreter = quantizer  # its runners do not keep it alive
        self._quantize = quantizer.get_signature_runner("encode")
        self._dequantize = quantizer.get_signature_runner("decode")

    def encoder(self) -> Stateful:
        """An encoder for one row or stream."""
        return Stateful(self._models["encoder"], "encoder")

    def encode(self, wave: Array, num_quantizers: int, encoder: Stateful) -> Array:
        """Codes ``[q, N]`` of ``N * FRAME_SIZE`` samples, after what ``encoder`` has seen."""
        count = np.array(num_quantizers, np.int32)
        frames = [
            self._quantize(
                input_frames=encoder.step(frame[None]).reshape(1, 1, FEATURES),
                num_quantizers=count,
            )["output_0"][:num_quantizers, 0, 0]
            for frame in wave.reshape(-1, FRAME_SIZE)
        ]
        return np.stack(frames, axis=1)

    def decoder(self) -> Stateful:
        """A decoder for one row or stream."""
        return Stateful(self._models["decoder"], "decoder")

    def decode(self, codes: Array, decoder: Stateful) -> Array:
        """Audio ``[N * FRAME_SIZE]`` of codes ``[q, N]``, after what ``decoder`` has seen."""
        padded = np.full((codes.shape[1], MAX_QUANTIZERS, 1, 1), _ABSENT, np.int32)
        padded[:, : codes.shape[0], 0, 0] = codes.T
        frames = [
            decoder.step(self._dequantize(encoding_indices=frame)["output_0"])[0]
            for frame in padded
        ]
        return np.concatenate(frames)


def _interpreter(content: bytes, name: str) -> Interpreter:
    try:
        # One thread: a frame is too little work to share.
        return Interpreter(model_content=content, num_threads=1)
    except ValueError as error:
        raise CheckpointError(
            FILES[name], "is no model that LiteRT can run", "restore the file"
        ) from error
