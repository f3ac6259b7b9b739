"""What codecs that are trained here share: losses around a residual quantizer, and an adversary."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from segue.core.interfaces import AcousticCodec, Adversary, StageBatch, Wave, WaveBatch
from segue.plugins.tokenizers.common.adversary import CodecAdversary, collapsed
from segue.plugins.tokenizers.common.options import TrainedCodecOptions
from segue.plugins.tokenizers.common.quantizer import Quantized, ResidualQuantizer


@dataclass(frozen=True)
class Attempt:
    """What a codec made of a batch.

    Attributes:
        wave: ``[B, T]`` the recordings, zero beyond each row's length.
        made: ``[B, T]`` what was decoded, zero there too.
        quantized: the latent frames between.
        mask: ``[B, N]``, 1 at valid frames.
        loss: of the reconstruction, weighted.
        figures: for the log.
    """

    wave: Wave
    made: Wave
    quantized: Quantized
    mask: Tensor
    loss: Tensor
    figures: Mapping[str, Tensor]


class TrainedCodec(AcousticCodec):
    """A codec that is trained by reconstruction, and against discriminators if its options say so.

    Both kinds of step move the codebooks as a side effect.
    """

    config: TrainedCodecOptions
    quantizer: ResidualQuantizer

    @abstractmethod
    def attempt(self, batch: WaveBatch) -> Attempt:
        """Encode, quantize and decode one batch of crops, with gradients."""

    def training_step(self, batch: WaveBatch | StageBatch) -> Mapping[str, Tensor]:
        return self._losses(batch, None)

    def adversary(self) -> Adversary | None:
        options = self.config.adversary
        return None if options.none else CodecAdversary(options)

    def adversarial_step(
        self, batch: WaveBatch | StageBatch, adversary: Adversary
    ) -> Mapping[str, Tensor]:
        return self._losses(batch, adversary)

    def trouble(self, figures: Mapping[str, float]) -> str | None:
        return collapsed(figures)

    def _losses(
        self, batch: WaveBatch | StageBatch, adversary: Adversary | None
    ) -> Mapping[str, Tensor]:
        if not isinstance(batch, WaveBatch):
            raise TypeError("a codec is trained on a WaveBatch")
        attempt, weights = self.attempt(batch), self.config.loss
        quantized = attempt.quantized
        loss = attempt.loss + weights.commitment * quantized.commitment
        others: dict[str, Tensor] = {}
        if adversary is not None:
            others = dict(adversary(attempt.wave, attempt.made))
            opposed = weights.adversarial * others["adversarial"]
            opposed = opposed + weights.feature_matching * others["feature_matching"]
            loss = loss + opposed
            others["adversarial_share"] = (opposed / loss).detach()
        figures = {name: value.detach() for name, value in attempt.figures.items()}
        figures["commitment"] = quantized.commitment.detach()
        use = self.quantizer.use(quantized.ids, attempt.mask)
        return {"loss": loss, **others, **figures, **use}
