"""A weight-free semantic tokenizer: how loud a frame is, and how often it changes sign."""

from __future__ import annotations

import torch

from segue.core.interfaces import Lengths, SemanticTokenizer, Tokens, Wave
from segue_toy.config import LoudnessOptions


class LoudnessTokenizer(SemanticTokenizer):
    """``toy_loudness.v1``."""

    needs = "none"
    config: LoudnessOptions

    def encode(self, wave: Wave, lengths: Lengths) -> Tokens:
        size, steps = self.config.spec().frame_size, self.config.steps
        frames = -(-lengths // size)
        count = int(frames.max())
        wave = wave[:, : int(lengths.max())]
        wave = wave * (torch.arange(wave.shape[1], device=wave.device) < lengths[:, None])
        pieces = torch.nn.functional.pad(wave, (0, count * size - wave.shape[1]))
        pieces = pieces.unflatten(1, (count, size))
        decibels = 20 * pieces.square().mean(-1).sqrt().clamp_min(1e-4).log10()  # -80 .. 0
        loudness = ((decibels + 80) / 80 * steps).long().clamp(0, steps - 1)
        crossings = (pieces[..., 1:] * pieces[..., :-1] < 0).float().mean(-1)
        tokens = Tokens((loudness * steps + _bin(crossings, steps))[:, None], frames)
        return Tokens(tokens.ids * tokens.mask[:, None], frames)


def _bin(share: torch.Tensor, steps: int) -> torch.Tensor:
    return (share.sqrt() * steps).long().clamp(0, steps - 1)
