"""A weight-free codec: the lowest cosine coefficients of each frame, companded and rounded."""

from __future__ import annotations

import math

import torch
from torchaudio.functional import create_dct

from segue.core.interfaces import AcousticCodec, Ids, Lengths, Tokens, Wave
from segue_toy.config import DctOptions

MU = 255.0


class DctCodec(AcousticCodec):
    """``toy_dct.v1``; every frame stands for itself, so it streams without delay."""

    needs = "none"
    decode_context = (0, 0)
    config: DctOptions
    basis: torch.Tensor

    def __init__(self, config: DctOptions) -> None:
        super().__init__(config)
        size = config.spec().frame_size
        self.register_buffer("basis", create_dct(size, size, "ortho"), persistent=False)

    def encode(self, wave: Wave, lengths: Lengths) -> Tokens:
        size, steps, levels = self._shape()
        frames = -(-lengths // size)
        wave = wave[:, : int(lengths.max())]
        wave = wave * (torch.arange(wave.shape[1], device=wave.device) < lengths[:, None])
        padded = torch.nn.functional.pad(wave, (0, int(frames.max()) * size - wave.shape[1]))
        values = padded.unflatten(1, (-1, size)) @ self.basis[:, : 2 * levels] / math.sqrt(size)
        companded = values.sign() * (1 + MU * values.abs()).log() / math.log(1 + MU)
        pairs = ((companded + 1) / 2 * steps).long().clamp(0, steps - 1).unflatten(2, (levels, 2))
        tokens = Tokens((pairs[..., 0] * steps + pairs[..., 1]).transpose(1, 2), frames)
        return Tokens(tokens.ids * tokens.mask[:, None], frames)

    def decode(self, codes: Ids, lengths: Lengths) -> Wave:
        size, steps, _ = self._shape()
        pairs = torch.stack([codes // steps, codes % steps], dim=-1).transpose(1, 2).flatten(2)
        companded = (pairs.to(self.basis.dtype) + 0.5) / steps * 2 - 1
        values = companded.sign() * ((1 + MU) ** companded.abs() - 1) / MU * math.sqrt(size)
        frames = values @ self.basis[:, : values.shape[2]].T
        return (frames * Tokens(codes, lengths).mask[..., None]).flatten(1)

    def _shape(self) -> tuple[int, int, int]:
        return self.config.spec().frame_size, self.config.steps, self.config.num_levels
