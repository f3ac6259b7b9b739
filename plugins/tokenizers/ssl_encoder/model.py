"""AudioLM's semantic tokens: a masked conformer's activations, clustered.

w2v-BERT (Chung et al., arXiv 2108.06209) learns contrastively below and by masked prediction above;
AudioLM (Borsos et al., arXiv 2209.03143, section III.B) normalises the activations of one layer and
clusters them by k-means. Other objectives train the same encoder.

Shape legend: B batch, T samples, N frames, D width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from segue.core.interfaces import Lengths, StageBatch, WaveBatch
from segue.plugins.layers.lengths import length_mask, without_padding
from segue.plugins.layers.transformer import transformer_blocks
from segue.plugins.tokenizers.common.kmeans import WindowedTokenizer
from segue.plugins.tokenizers.ssl_encoder.config import SslEncoderOptions
from segue.plugins.tokenizers.ssl_encoder.encoder import (
    Encoder,
    LogMel,
    Masked,
    Mel,
    disturb,
    draw_spans,
    hide,
    transposed,
)
from segue.plugins.tokenizers.ssl_encoder.objectives import make_objective

VALIDATION_SEED = 0  # each validation hides the same frames


class SslEncoderTokenizer(WindowedTokenizer):
    """Train an encoder by self-supervision, then cluster one of its layers."""

    needs_training, needs_fitting = True, True
    config: SslEncoderOptions
    blocks = transformer_blocks

    def __init__(self, config: SslEncoderOptions) -> None:
        super().__init__(config, config.width)
        self.mel = LogMel(config)
        self.encoder = Encoder(config)
        self.objective = make_objective(config, self.encoder)

    def training_step(self, batch: WaveBatch | StageBatch) -> Mapping[str, Tensor]:
        """Return losses and, for the log, ``accuracy`` on hidden frames and ``perplexity``."""
        assert isinstance(batch, WaveBatch)
        config, random = self.config, None
        if self.training:
            self.fitted.fill_(False)  # clusters of older activations mean nothing any more
        else:
            random = torch.Generator().manual_seed(VALIDATION_SEED)
        wave = without_padding(batch.wave, batch.lengths)
        raw = self.mel.raw(wave.to(self.centroids.dtype))
        if self.training and config.transpose:
            raw = transposed(raw, config.transpose, random)
        clean = self.mel.normalised(raw, batch.lengths)
        inputs = self._disturbed(raw, batch.lengths) if self.training else clean
        frames = -(-batch.lengths // self.spec.frame_size)
        valid = length_mask(frames, inputs.shape[1] // config.subframes)
        hidden = draw_spans(valid, config, random)
        states = self.encoder(hide(inputs, hidden, config, random), valid, config.depth)
        # The spectra from which the objective makes its targets. Those of ``swap`` are disturbed
        # anew, so that agreement needs what both disturbances leave.
        targets = clean
        if config.objective == "chroma":
            targets = raw
        elif config.objective == "swap" and self.training:
            targets = self._disturbed(raw, batch.lengths)
        return self.objective(Masked(targets, valid, hidden, states), self.encoder)

    def _disturbed(self, raw: Mel, lengths: Lengths) -> Mel:
        return self.mel.normalised(disturb(raw, self.config, None), lengths)

    def row_features(self, wave: Float[Tensor, "T"]) -> Float[Tensor, "N D"]:
        """Return the activations of the layer that is clustered."""
        lengths = torch.tensor([wave.shape[0]], device=wave.device)
        mel = self.mel(wave[None], lengths).to(self.centroids.dtype)
        frames = mel.shape[1] // self.config.subframes
        valid = torch.ones(1, frames, dtype=torch.bool, device=wave.device)
        mode = self.encoder.training
        self.encoder.eval()  # tokens have no dropout, also of a model that is being trained
        states = self.encoder(mel, valid, self.config.layer)
        self.encoder.train(mode)
        return states[-1][0]

    # A checkpoint may leave the training parts out, and the fingerprint does not depend on them.

    def token_state(self) -> Mapping[str, Tensor]:
        """Return the encoder up to the clustered layer and the clusters, not the training parts."""
        above = range(self.config.layer, self.config.depth)
        blocks = (f"encoder.conformer.blocks.{number}." for number in above)
        unused = ("objective.", "encoder.conformer.norm.", *blocks)
        return {k: v for k, v in self.state_dict().items() if not k.startswith(unused)}

    def training_state(self) -> Mapping[str, Tensor]:
        needed = self.token_state()
        return {k: v for k, v in self.state_dict().items() if k not in needed}
