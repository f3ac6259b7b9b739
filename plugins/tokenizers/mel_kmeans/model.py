"""Mel cepstra and their slopes, clustered.

Cepstra (Davis & Mermelstein, 1980) describe the shape of the vocal tract's filter with little of
the pitch; without the zeroth and without a recording's mean, little of loudness and channel is
left either.
"""

from __future__ import annotations

import torch
import torchaudio
from jaxtyping import Float
from torch import Tensor

from segue.core.interfaces import Lengths, Wave
from segue.plugins.tokenizers.common.framing import Framing, with_edges
from segue.plugins.tokenizers.common.kmeans import KMeansTokenizer
from segue.plugins.tokenizers.mel_kmeans.config import MelKMeansOptions

FLOOR = 1e-5  # magnitude; a full-scale sine has about 0.5


class MelKMeansTokenizer(KMeansTokenizer):
    """Tokens that follow the spectrum's envelope: an approximation of phones.

    Args:
        config: options.
    """

    config: MelKMeansOptions
    filters: Tensor
    cosines: Tensor

    def __init__(self, config: MelKMeansOptions) -> None:
        super().__init__(config, 2 * config.num_cepstra)
        self.framing = Framing(config.hop, config.window)
        filters = torchaudio.functional.melscale_fbanks(
            config.window // 2 + 1, 20.0, config.sample_rate / 2, config.num_mels,
            config.sample_rate, norm=None, mel_scale="htk",
        )  # fmt: skip
        cosines = torchaudio.functional.create_dct(config.num_cepstra + 1, config.num_mels, "ortho")
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("cosines", cosines[:, 1:].contiguous(), persistent=False)

    def features(self, wave: Wave, lengths: Lengths) -> Float[Tensor, "B N D"]:
        """Mean and slope of each coefficient over a token's spectra."""
        config = self.config
        cepstra = self._cepstra(wave)
        valid = -(-lengths // config.hop)
        if config.remove_mean:
            mask = (torch.arange(cepstra.shape[1], device=wave.device) < valid[:, None])[..., None]
            mean = (cepstra * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
            cepstra = cepstra - mean
        tokens = -(-wave.shape[1] // (config.hop * config.subframes))
        reach = config.slope_reach
        padded = with_edges(cepstra, valid, tokens * config.subframes, reach)
        around = padded.unfold(1, config.subframes + 2 * reach, config.subframes)  # [B, N, D, W]
        mean = around[..., reach : reach + config.subframes].mean(-1)
        offsets = torch.arange(around.shape[-1], device=wave.device, dtype=wave.dtype)
        offsets = offsets - offsets.mean()
        slope = (around * offsets).sum(-1) / offsets.square().sum()
        return torch.cat([mean, slope], dim=2)

    def _cepstra(self, wave: Wave) -> Float[Tensor, "B M C"]:
        mel = self.framing.analyse(wave).abs() @ self.filters.to(wave.dtype)
        return torch.log(mel + FLOOR) @ self.cosines.to(wave.dtype)
