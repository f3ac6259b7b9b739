"""Train codecs by reconstruction, and against discriminators."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from segue.core.interfaces import AcousticCodec, Adversary, StageBatch, Wave, WaveBatch
from segue.plugins.tokenizers.common.discriminators import (
    DilatedStftDiscriminator,
    StftDiscriminator,
    Verdict,
    WaveDiscriminator,
    adversarial_hinge,
    adversary_hinge,
    feature_matching,
)
from segue.plugins.tokenizers.common.options import AdversaryOptions, TrainedCodecOptions
from segue.plugins.tokenizers.common.quantizer import QuantizedFrames, ResidualQuantizer

SILENT = 1e-3  # amplitude; quieter crops are not amplified to full loudness
# Beyond these bounds a training teaches nothing more.
COLLAPSED_USE = 0.01  # of a codebook, between 0 and 1
COLLAPSED_HINGE = 0.02  # of an adversary; 2 is the loss of guessing
DIVERGED_HINGE = 20.0


@dataclass(frozen=True)
class Attempt:
    """Hold what a codec made of a batch."""

    wave: Wave  # recordings, zero beyond each row's length
    made: Wave  # decoded audio, zero there too
    quantized: QuantizedFrames
    mask: Float[Tensor, "B N"]  # 1 at valid frames
    loss: Tensor  # weighted reconstruction loss
    figures: Mapping[str, Tensor]  # for the log


class TrainedCodec(AcousticCodec):
    """Train by reconstruction, and against an adversary if the options ask for one.

    Both kinds of step move the codebooks as a side effect.
    """

    config: TrainedCodecOptions
    quantizer: ResidualQuantizer

    @abstractmethod
    def attempt(self, batch: WaveBatch) -> Attempt:
        """Encode, quantize and decode one batch of crops, with gradients."""

    def token_state(self) -> Mapping[str, Tensor]:
        """Return the encoder and the codes: neither decoder nor running means decide a token."""
        state = self.state_dict()
        return {k: v for k, v in state.items() if k.startswith("encoder.") or k.endswith(".codes")}

    def adversary(self) -> Adversary | None:
        options = self.config.adversary
        return None if options.none else CodecAdversary(options)

    def trouble(self, figures: Mapping[str, float]) -> str | None:
        return collapsed(figures)

    def adversarial_step(
        self, batch: WaveBatch | StageBatch, adversary: Adversary
    ) -> Mapping[str, Tensor]:
        return self.training_step(batch, adversary)

    def training_step(
        self, batch: WaveBatch | StageBatch, adversary: Adversary | None = None
    ) -> Mapping[str, Tensor]:
        assert isinstance(batch, WaveBatch)
        attempt, weights = self.attempt(batch), self.config.loss
        quantized = attempt.quantized
        loss = attempt.loss + weights.commitment * quantized.commitment
        judged: dict[str, Tensor] = {}
        if adversary is not None:
            judged = dict(adversary(attempt.wave, attempt.made))
            opposed = weights.adversarial * judged["adversarial"]
            opposed = opposed + weights.feature_matching * judged["feature_matching"]
            loss = loss + opposed
            # For the log: how much the discriminators weigh in the codec's loss.
            judged["adversarial_share"] = (opposed / loss).detach()
        figures = {name: value.detach() for name, value in attempt.figures.items()}
        figures["commitment"] = quantized.commitment.detach()
        use = self.quantizer.use(quantized.ids, attempt.mask)
        return {"loss": loss, **judged, **figures, **use}


class CodecAdversary(Adversary):
    """Judge recordings and decoded audio by several discriminators.

    Args:
        options: how many discriminators there are, and how large.
    """

    def __init__(self, options: AdversaryOptions) -> None:
        super().__init__()
        stft_kind = StftDiscriminator if options.stft_residual else DilatedStftDiscriminator
        members: list[nn.Module] = [
            WaveDiscriminator(scale, options.wave_channels) for scale in options.wave_scales
        ]
        members += [stft_kind(window, options.stft_channels) for window in options.stft_windows]
        self.discriminators = nn.ModuleList(members)
        self.stretch = options.stretch

    def forward(self, real: Wave, made: Wave) -> Mapping[str, Tensor]:
        if 0 < self.stretch < real.shape[1]:
            start = int(torch.randint(real.shape[1] - self.stretch + 1, ()))
            real, made = (wave[:, start : start + self.stretch] for wave in (real, made))
        # Bring all recordings to one loudness, or biases of the first layer drown soft ones.
        gain = 1.0 / (real.square().mean(1, keepdim=True).sqrt() + SILENT)
        both = torch.cat([real * gain, made * gain])  # one pass instead of two
        verdicts = [discriminator(both) for discriminator in self.discriminators]
        size = len(real)
        of_real = [Verdict(v.logits[:size], [f[:size] for f in v.features]) for v in verdicts]
        of_made = [Verdict(v.logits[size:], [f[size:] for f in v.features]) for v in verdicts]
        figures = {
            "adversary_loss": adversary_hinge(of_real, of_made),
            "adversarial": adversarial_hinge(of_made),
            "feature_matching": feature_matching(of_real, of_made),
        }
        for name, found in (("score_real", of_real), ("score_made", of_made)):
            scores = [verdict.logits.detach().mean() for verdict in found]
            figures[name] = torch.stack(scores).mean()
        return figures


def collapsed(figures: Mapping[str, float]) -> str | None:
    """Return why the training of a codec is failing, or None.

    Args:
        figures: running means: ``codebook_worst`` (how evenly the codes of the worst level are
            used) and, with an adversary, ``adversary_loss``.
    """
    use = figures.get("codebook_worst", 1.0)
    hinge = figures.get("adversary_loss", 1.0)
    if use < COLLAPSED_USE:
        return f"a codebook collapsed: its codes are used as if only {use:.1%} of them existed"
    if hinge < COLLAPSED_HINGE:
        return "the discriminators recognise every crop: the codec can learn nothing from them"
    if hinge > DIVERGED_HINGE:
        return "the discriminators diverged: their loss is ten times the loss of guessing"
    return None
