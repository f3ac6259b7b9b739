"""What codecs are trained against: discriminators of the wave and of its spectrogram."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from segue.core.interfaces import Adversary, Wave
from segue.plugins.tokenizers.common.discriminators import (
    DilatedStftDiscriminator,
    Discriminators,
    StftDiscriminator,
    Verdict,
    WaveDiscriminator,
    adversarial_hinge,
    adversary_hinge,
    feature_matching,
)
from segue.plugins.tokenizers.common.options import AdversaryOptions

# A codebook of which so little is in use, or a discriminator that is so sure, teaches nothing.
COLLAPSED_USE = 0.01
SILENT = 1e-3  # amplitude below which a crop is not made loud
COLLAPSED_HINGE = 0.02  # of 2, which is what discriminators that cannot tell are left with


class CodecAdversary(Adversary):
    """The discriminators that the options name.

    Args:
        options: how many there are, and how large.
    """

    def __init__(self, options: AdversaryOptions) -> None:
        super().__init__()
        kind = StftDiscriminator if options.stft_residual else DilatedStftDiscriminator
        members: list[nn.Module] = [
            WaveDiscriminator(scale, options.wave_channels) for scale in options.wave_scales
        ]
        members += [kind(window, options.stft_channels) for window in options.stft_windows]
        self.discriminators = Discriminators(members)
        self.stretch = options.stretch

    def forward(self, real: Wave, made: Wave) -> Mapping[str, Tensor]:
        if 0 < self.stretch < real.shape[1]:
            start = int(torch.randint(real.shape[1] - self.stretch + 1, ()))
            real, made = (wave[:, start : start + self.stretch] for wave in (real, made))
        # Soft recordings are judged like loud ones, and no bias of a first layer drowns them.
        gain = 1.0 / (real.square().mean(1, keepdim=True).sqrt() + SILENT)
        there, here = _halves(self.discriminators(torch.cat([real * gain, made * gain])), len(real))
        figures = {
            "adversary_loss": adversary_hinge(there, here),
            "adversarial": adversarial_hinge(here),
            "feature_matching": feature_matching(there, here),
        }
        for name, verdicts in (("score_real", there), ("score_made", here)):
            scores = [verdict.logits.detach().mean() for verdict in verdicts]
            figures[name] = torch.stack(scores).mean()
        return figures


def _halves(verdicts: list[Verdict], size: int) -> tuple[list[Verdict], list[Verdict]]:
    """What was said of the first ``size`` rows, and what of the others."""
    first = [Verdict(v.logits[:size], [f[:size] for f in v.features]) for v in verdicts]
    others = [Verdict(v.logits[size:], [f[size:] for f in v.features]) for v in verdicts]
    return first, others


def collapsed(figures: Mapping[str, float]) -> str | None:
    """What is wrong with the training of a codec whose running figures are these.

    Args:
        figures: ``codebook_worst`` (how evenly the codes of the worst level are used) and, while
            there is an adversary, its ``adversary_loss``.
    """
    use = figures.get("codebook_worst", 1.0)
    if use < COLLAPSED_USE:
        return f"a codebook collapsed: its codes are used no better than {use:.1%} of them would be"
    if figures.get("adversary_loss", 1.0) < COLLAPSED_HINGE:
        return "the discriminators tell every crop apart: the codec can learn nothing from them"
    if figures.get("adversary_loss", 0.0) > 20.0:
        return "the discriminators have lost their way: their loss is ten times that of guessing"
    return None
