"""AudioLM's semantic tokens: a masked conformer's activations, clustered.

w2v-BERT (Chung et al., arXiv 2108.06209) learns contrastively below and by masked prediction above;
AudioLM (Borsos et al., arXiv 2209.03143, section III.B) normalises the activations of one layer and
clusters them by k-means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from segue.core.interfaces import Lengths, StageBatch, Wave, WaveBatch
from segue.plugins.layers.transformer import transformer_blocks
from segue.plugins.tokenizers.common.kmeans import KMeansTokenizer
from segue.plugins.tokenizers.common.windows import in_windows
from segue.plugins.tokenizers.w2v_bert.config import W2vBertOptions
from segue.plugins.tokenizers.w2v_bert.disturbing import disturb, transposed
from segue.plugins.tokenizers.w2v_bert.encoder import Encoder, LogMel, Mel, valid_mask
from segue.plugins.tokenizers.w2v_bert.masking import Masked, draw_spans, hide
from segue.plugins.tokenizers.w2v_bert.objectives import make_objective

VALIDATION_SEED = 0


class W2vBertTokenizer(KMeansTokenizer):
    """Self-supervised tokens.

    Args:
        config: options.
    """

    needs_training = needs_fitting = True
    config: W2vBertOptions

    def __init__(self, config: W2vBertOptions) -> None:
        super().__init__(config, config.width)
        self.mel = LogMel(config)
        self.encoder = Encoder(config)
        self.objective = make_objective(config, self.encoder)

    def blocks(self) -> Sequence[nn.Module]:
        return transformer_blocks(self)

    def training_step(self, batch: WaveBatch | StageBatch) -> Mapping[str, Tensor]:
        """Losses and, for the log, ``accuracy`` on hidden frames, ``perplexity`` of the ids."""
        if not isinstance(batch, WaveBatch):
            raise TypeError("a tokenizer is trained on a WaveBatch")
        if self.training:
            self.fitted.fill_(False)
        random = None if self.training else torch.Generator().manual_seed(VALIDATION_SEED)
        inside = valid_mask(batch.lengths, batch.wave.shape[1])
        raw = self.mel.raw((batch.wave * inside).to(self.centroids.dtype))
        if self.training and self.config.transpose:
            raw = transposed(raw, self.config.transpose, random)
        heard = clean = self.mel.normalised(raw, batch.lengths)
        if self.training:
            heard = self._disturbed(raw, batch.lengths)
        frames = -(-batch.lengths // self.spec.frame_size)
        valid = valid_mask(frames, heard.shape[1] // self.config.subframes)
        hidden = draw_spans(valid, self.config, random)
        seen = hide(heard, hidden, self.config, random)
        states = self.encoder(seen, valid, self.config.depth)
        losses: Mapping[str, Tensor] = self.objective(
            Masked(self._source(raw, clean, batch.lengths), valid, hidden, states), self.encoder
        )
        return losses

    def _source(self, raw: Mel, clean: Mel, lengths: Lengths) -> Mel:
        """The spectra from which the objective makes its targets."""
        if self.config.objective == "chroma":
            return raw
        swaps = self.training and self.config.objective == "swap"
        return self._disturbed(raw, lengths) if swaps else clean

    def _disturbed(self, raw: Mel, lengths: Lengths) -> Mel:
        return self.mel.normalised(disturb(raw, self.config, None), lengths)

    def features(self, wave: Wave, lengths: Lengths) -> Float[Tensor, "B N D"]:
        """Activations of the layer, each row on its own: sums over padded rows would be taken in
        another order, and a token close to two centroids could go to either."""
        size = self.spec.frame_size
        found = wave.new_zeros(wave.shape[0], -(-wave.shape[1] // size), self.config.width)
        for row, length in enumerate(lengths.tolist()):
            if length:
                part = in_windows(
                    self._layer, wave[row, :length], size,
                    self._frames(self.config.window_seconds),
                    self._frames(self.config.margin_seconds),
                )  # fmt: skip
                found[row, : part.shape[0]] = part
        return found

    def _frames(self, seconds: float) -> int:
        return round(seconds * self.config.frame_rate)

    def _layer(self, wave: Float[Tensor, "T"]) -> Float[Tensor, "N D"]:
        """Activations of audio that is not too long."""
        lengths = torch.tensor([wave.shape[0]], device=wave.device)
        mel = self.mel(wave[None], lengths).to(self.centroids.dtype)
        frames = mel.shape[1] // self.config.subframes
        valid = torch.ones(1, frames, dtype=torch.bool, device=wave.device)
        states: list[Tensor] = self.encoder(mel, valid, self.config.layer)
        return states[-1][0]

    def token_state(self) -> Mapping[str, Tensor]:
        """Of the encoder only what lies below the clustered layer, without the training parts."""
        above = range(self.config.layer, self.config.depth)
        blocks = (f"encoder.conformer.blocks.{number}." for number in above)
        unused = ("objective.", "encoder.conformer.norm.", *blocks)
        return {k: v for k, v in self.state_dict().items() if not k.startswith(unused)}

    def training_state(self) -> Mapping[str, Tensor]:
        needed = self.token_state()
        return {k: v for k, v in self.state_dict().items() if k not in needed}
