"""Semantic tokens from a pretrained self-supervised model, as in GSLM (Lakhotia et al., arXiv
2102.01192) and AudioLM: one layer's activations, normalised and clustered."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from segue.core.interfaces import Lengths, Wave
from segue.plugins.tokenizers.common.kmeans import KMeansTokenizer
from segue.plugins.tokenizers.common.windows import in_windows
from segue.plugins.tokenizers.ssl_kmeans.backbones import open_backbone
from segue.plugins.tokenizers.ssl_kmeans.config import SslKMeansOptions


class SslKMeansTokenizer(KMeansTokenizer):
    """The model is used as it is; only the clusters are fitted.

    Rows are encoded one by one: models whose first layer normalises over time (wav2vec 2.0 and
    HuBERT base) hear padding, whatever mask they are given.

    Args:
        config: options; those that are kept say what was found at the source, so that a saved
            tokenizer is opened without it.
    """

    config: SslKMeansOptions

    def __init__(self, config: SslKMeansOptions) -> None:
        backbone, found = open_backbone(config)
        kept = config.model_copy(update={"found": found})
        super().__init__(kept, backbone.shape.width)
        self.backbone = backbone.requires_grad_(False).eval()
        self.window = kept.frames(kept.window_seconds)
        self.margin = min(kept.frames(kept.margin_seconds), (self.window - 1) // 2)

    def train(self, mode: bool = True) -> SslKMeansTokenizer:
        """The model inside stays in eval mode: nothing is dropped or masked."""
        super().train(mode)
        self.backbone.eval()
        return self

    def features(self, wave: Wave, lengths: Lengths) -> Float[Tensor, "B N D"]:
        size = self.spec.frame_size
        found = wave.new_zeros(wave.shape[0], -(-wave.shape[1] // size), self.mean.shape[0])
        for row, length in enumerate(lengths.tolist()):
            if length:
                part = in_windows(self._pooled, wave[row, :length], size, self.window, self.margin)
                found[row, : part.shape[0]] = part
        return found

    def _pooled(self, wave: Float[Tensor, "T"]) -> Float[Tensor, "N D"]:
        """The mean of each token's frames; the last token may have fewer."""
        frames: Tensor = self.backbone(wave)
        if self.config.pool == 1:
            return frames
        missing = -frames.shape[0] % self.config.pool
        groups = functional.pad(frames, (0, 0, 0, missing)).unflatten(0, (-1, self.config.pool))
        counts = torch.full((groups.shape[0], 1), self.config.pool).to(frames)
        counts[-1] -= missing
        means: Tensor = groups.sum(1) / counts
        return means
