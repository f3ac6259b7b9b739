"""How loud and how bright each frame is, in steps."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from segue.core.interfaces import SemanticTokenizer, Tokens
from segue_toy.semantic_config import LoudnessOptions

QUIETEST_DB = -60.0


class LoudnessTokenizer(SemanticTokenizer):
    """Energy and zero crossings of a frame; there is nothing to learn."""

    needs_training = False

    def __init__(self, config: LoudnessOptions) -> None:
        super().__init__(config)
        self.steps = config.steps

    def encode(self, wave: Tensor, lengths: Tensor) -> Tokens:
        size = self.spec.frame_size
        beyond = torch.arange(wave.shape[1], device=wave.device) >= lengths[:, None]
        wave = wave.masked_fill(beyond, 0.0)
        frames = pad(wave, (0, -wave.shape[1] % size)).view(len(wave), -1, size)  # [B, N, size]
        level = 10 * frames.square().mean(dim=-1).clamp_min(1e-12).log10()
        # Faint samples do not count, so that noise and silence do not look bright.
        sign = frames.sign() * (frames.abs() > 1e-3)
        crossings = (sign[..., 1:] * sign[..., :-1] < 0).to(wave.dtype).mean(dim=-1)
        loud, bright = self._step(1 - level / QUIETEST_DB), self._step((2 * crossings).sqrt())
        return Tokens((loud * self.steps + bright)[:, None], -(-lengths // size))

    def _step(self, share: Tensor) -> Tensor:
        """Shares of 1 in whole steps."""
        return (share * self.steps).long().clamp(0, self.steps - 1)
