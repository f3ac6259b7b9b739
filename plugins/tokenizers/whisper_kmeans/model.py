"""Semantic tokens from a layer of a speech recogniser.

Whisper (Radford et al., arXiv 2212.04356) was trained on transcripts, so these tokens are not
textless as AudioLM's are. Quantised features of a recogniser drive CosyVoice (arXiv 2407.05407)
and GLM-4-Voice (arXiv 2412.02612), too.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from segue.core.interfaces import Lengths, Wave
from segue.plugins.tokenizers.common.kmeans import KMeansTokenizer
from segue.plugins.tokenizers.common.windows import in_windows
from segue.plugins.tokenizers.whisper_kmeans.config import WhisperKMeansOptions
from segue.plugins.tokenizers.whisper_kmeans.encoder import Encoder, LogMel


class WhisperKMeansTokenizer(KMeansTokenizer):
    """The encoder is used as it was trained; only the clusters are fitted.

    Args:
        config: options.
    """

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
        size = self.spec.frame_size
        found = wave.new_zeros(wave.shape[0], -(-wave.shape[1] // size), self.config.width)
        for row, length in enumerate(lengths.tolist()):
            if length:
                part = in_windows(self._pooled, wave[row, :length], size, self.window, self.margin)
                found[row, : part.shape[0]] = part
        return found

    def _pooled(self, wave: Float[Tensor, "T"]) -> Float[Tensor, "N D"]:
        """Return the mean of each token's frames."""
        whole = functional.pad(wave, (0, -wave.shape[0] % self.spec.frame_size))
        frames: Tensor = self.encoder(self.mel(whole[None]).to(self.centroids.dtype))[0]
        means: Tensor = frames.unflatten(0, (-1, self.config.pool)).mean(1)
        return means
