"""Semantic tokens from a layer of a speech recogniser.

Whisper (Radford et al., arXiv 2212.04356) was trained on transcripts, so these tokens are not
textless as AudioLM's are. Quantised features of a recogniser drive CosyVoice (arXiv 2407.05407)
and GLM-4-Voice (arXiv 2412.02612), too.

``read_variables`` reads weights from CTranslate2's file ``model.bin``
(https://github.com/OpenNMT/CTranslate2, python/ctranslate2/specs/model_spec.py): version, name and
revision; then each variable's name, shape, type and bytes; then aliases. Numbers are little-endian,
strings end with a zero byte.

Shape legend: B batch, T samples, M spectra, N frames (50 a second), F bands, D width.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import torchaudio
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from segue.core.errors import CheckpointError
from segue.core.interfaces import Lengths, Wave
from segue.plugins.tokenizers.common.kmeans import KMeansTokenizer
from segue.plugins.tokenizers.common.spectra import encode_rows
from segue.plugins.tokenizers.whisper_kmeans.config import HOP, RATE, WhisperKMeansOptions

TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
#: Names of a block's tensors here and there.
BLOCK = {
    "attention_norm.weight": "self_attention/layer_norm/gamma",
    "attention_norm.bias": "self_attention/layer_norm/beta",
    "inner.weight": "self_attention/linear_0/weight",
    "inner.bias": "self_attention/linear_0/bias",
    "outer.weight": "self_attention/linear_1/weight",
    "outer.bias": "self_attention/linear_1/bias",
    "feed_norm.weight": "ffn/layer_norm/gamma",
    "feed_norm.bias": "ffn/layer_norm/beta",
    "feed.0.weight": "ffn/linear_0/weight",
    "feed.0.bias": "ffn/linear_0/bias",
    "feed.2.weight": "ffn/linear_1/weight",
    "feed.2.bias": "ffn/linear_1/bias",
}


def read_variables(path: Path) -> dict[str, Tensor]:
    """Return all variables of a ``model.bin`` by name, in single precision where they are numbers.

    Raises:
        CheckpointError: if the file is no whole model of a type that is known here.
    """
    try:
        with path.open("rb") as file:
            _number(file, "I")  # version of the format
            _string(file), _number(file, "I")  # the model's name and revision
            return dict(_variable(file) for _ in range(_number(file, "I")))
    except (struct.error, UnicodeDecodeError, KeyError, ValueError, OSError) as error:
        raise CheckpointError(
            str(path), f"it cannot be read ({error})", "give the model.bin of CTranslate2"
        ) from error


def encoder_state(variables: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Return the state dict of an ``Encoder`` of so many blocks."""
    state = {
        f"{part}.{kind}": variables[f"encoder/{part}/{kind}"]
        for part in ("conv1", "conv2")
        for kind in ("weight", "bias")
    }
    for number in range(depth):
        for ours, theirs in BLOCK.items():
            state[f"blocks.{number}.{ours}"] = variables[f"encoder/layer_{number}/{theirs}"]
    return state


def _variable(file: BinaryIO) -> tuple[str, Tensor]:
    name = _string(file)
    shape = [_number(file, "I") for _ in range(_number(file, "B"))]
    kind = TYPES[_number(file, "B")]
    count = _number(file, "I")
    values = np.frombuffer(file.read(count), kind).reshape(shape).copy()
    found = torch.from_numpy(values)
    return name, found.float() if found.is_floating_point() else found


def _string(file: BinaryIO) -> str:
    return file.read(_number(file, "H")).rstrip(b"\0").decode()


def _number(file: BinaryIO, kind: str) -> int:
    return int(struct.unpack(f"<{kind}", file.read(struct.calcsize(f"<{kind}")))[0])


WINDOW = 400
FLOOR = 1e-10  # of power
RANGE = 8.0  # powers of ten below the loudest bin that are kept

Frames = Float[Tensor, "B N D"]


class LogMel(nn.Module):
    """Log-mel spectra as Whisper scales them: the loudest of each row is near 1."""

    filters: Tensor
    hann: Tensor

    def __init__(self, num_mels: int) -> None:
        super().__init__()
        filters = torchaudio.functional.melscale_fbanks(
            WINDOW // 2 + 1, 0.0, RATE / 2, num_mels, RATE, norm="slaney", mel_scale="slaney"
        )
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("hann", torch.hann_window(WINDOW), persistent=False)

    def forward(self, wave: Wave) -> Float[Tensor, "B F M"]:
        spectra = torch.stft(
            wave, WINDOW, HOP, window=self.hann.to(wave.dtype), center=True, return_complex=True
        )[..., :-1]
        power = self.filters.to(wave.dtype).T @ spectra.abs().square()
        logs = power.clamp_min(FLOOR).log10()
        logs = torch.maximum(logs, logs.amax((1, 2), keepdim=True) - RANGE)
        return (logs + 4.0) / 4.0


class Block(nn.Module):
    """Attention and feed-forward, each with its norm before it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, 3 * width)
        self.outer = nn.Linear(width, width)
        self.feed_norm = nn.LayerNorm(width)
        self.feed = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Frames) -> Frames:
        inner = self.inner(self.attention_norm(x)).unflatten(2, (3, self.heads, -1))
        query, key, value = inner.permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(query, key, value)
        x = x + self.outer(seen.transpose(1, 2).flatten(2))
        return x + self.feed(self.feed_norm(x))


class Encoder(nn.Module):
    """Two convolutions, which halve the rate, and transformer blocks that see all frames."""

    def __init__(self, config: WhisperKMeansOptions) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(config.num_mels, config.width, 3, padding=1)
        self.conv2 = nn.Conv1d(config.width, config.width, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.depth))

    def forward(self, mel: Float[Tensor, "B F M"]) -> Frames:
        """Return the last block's activations."""
        x = functional.gelu(self.conv1(mel))
        x = functional.gelu(self.conv2(x)).transpose(1, 2)
        x = x + sinusoids(x.shape[1], x.shape[2]).to(x)
        for block in self.blocks:
            x = block(x)
        return x


def sinusoids(count: int, width: int) -> Float[Tensor, "N D"]:
    """Return the positions: sines of geometrically spaced periods, then cosines."""
    rates = torch.exp(-math.log(10000.0) / (width // 2 - 1) * torch.arange(width // 2))
    angles = torch.arange(count)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class WhisperKMeansTokenizer(KMeansTokenizer):
    """The encoder is used as it was trained; only the clusters are fitted."""

    needs_weights = True
    config: WhisperKMeansOptions

    def __init__(self, config: WhisperKMeansOptions) -> None:
        super().__init__(config, config.width)
        self.mel = LogMel(config.num_mels)
        self.encoder = Encoder(config).requires_grad_(False)
        self.window = config.frames(config.window_seconds)
        self.margin = min(config.frames(config.margin_seconds), (self.window - 1) // 2)

    def features(self, wave: Wave, lengths: Lengths) -> Float[Tensor, "B N D"]:
        """Return activations, each row on its own: the encoder knows no padding."""
        size, width = self.spec.frame_size, self.config.width
        return encode_rows(self._pooled, wave, lengths, size, width, self.window, self.margin)

    def _pooled(self, wave: Float[Tensor, "T"]) -> Float[Tensor, "N D"]:
        """Return the mean of each token's frames."""
        whole = functional.pad(wave, (0, -wave.shape[0] % self.spec.frame_size))
        frames = self.encoder(self.mel(whole[None]).to(self.centroids.dtype))[0]
        return frames.unflatten(0, (-1, self.config.pool)).mean(1)
