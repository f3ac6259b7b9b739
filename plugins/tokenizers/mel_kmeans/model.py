"""Semantic tokens from mel cepstra and their slopes.

The simplest tokenizer, and the first to read. Audio goes through four steps: spectra of 25 ms,
their energies in mel bands, the cosine transform of the logarithms (cepstra), and for each token
the mean and the slope of every coefficient. ``KMeansTokenizer`` does the rest: it normalises these
features and gives each frame the number of the nearest centroid.

Cepstra (Davis & Mermelstein, 1980) describe the vocal tract's filter, hence the phone, with little
of the pitch. Without the zeroth coefficient and a recording's mean they keep little of loudness and
channel either: content instead of sound, which is what a semantic token is for.

Shape legend: B batch, T samples, M spectra, C coefficients, N frames (tokens), D features.
"""

from __future__ import annotations

import torch
import torchaudio
from jaxtyping import Float
from torch import Tensor

from segue.core.interfaces import Lengths, Wave
from segue.plugins.layers.lengths import length_mask
from segue.plugins.tokenizers.common.kmeans import KMeansTokenizer
from segue.plugins.tokenizers.common.spectra import Framing, mean_and_slope
from segue.plugins.tokenizers.mel_kmeans.config import MelKMeansOptions

FLOOR = 1e-5  # magnitude; a full-scale sine has about 0.5
LOWEST_HERTZ = 20.0


class MelKMeansTokenizer(KMeansTokenizer):
    """Emit tokens that follow the spectrum's envelope: an approximation of phones."""

    config: MelKMeansOptions
    filters: Tensor
    cosines: Tensor

    def __init__(self, config: MelKMeansOptions) -> None:
        super().__init__(config, num_features=2 * config.num_cepstra)
        self.framing = Framing(config.hop, config.window)
        filters = torchaudio.functional.melscale_fbanks(
            config.window // 2 + 1, LOWEST_HERTZ, config.sample_rate / 2, config.num_mels,
            config.sample_rate, norm=None, mel_scale="htk",
        )  # fmt: skip
        cosines = torchaudio.functional.create_dct(config.num_cepstra + 1, config.num_mels, "ortho")
        # Constant tables are not persistent: the fingerprint hashes all that a checkpoint stores,
        # and the options determine these.
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("cosines", cosines[:, 1:].contiguous(), persistent=False)

    def features(self, wave: Wave, lengths: Lengths) -> Float[Tensor, "B N D"]:
        config = self.config
        mel = self.framing.analyse(wave).abs() @ self.filters.to(wave.dtype)
        cepstra = torch.log(mel + FLOOR) @ self.cosines.to(wave.dtype)
        num_spectra = -(-lengths // config.hop)
        if config.remove_mean:
            # Take the mean over a row's own spectra: padding must not move it.
            mask = length_mask(num_spectra, cepstra.shape[1])[..., None]
            mean = (cepstra * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
            cepstra = cepstra - mean
        num_tokens = -(-wave.shape[1] // (config.hop * config.subframes))
        return mean_and_slope(
            cepstra, num_spectra, num_tokens, config.subframes, config.slope_reach
        )
