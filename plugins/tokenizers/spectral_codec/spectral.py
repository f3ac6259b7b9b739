"""Spectra as the encoder sees them and as the decoder emits them."""

from __future__ import annotations

import torch
from jaxtyping import Complex, Float
from torch import Tensor

# The exponent that brings loud and soft partials within reach of one another, as is customary in
# speech enhancement (e.g. Braun & Tashev, arXiv 2009.12286).
COMPRESSION = 0.3
FLOOR = 1e-5

# exp(1) is beyond what a full-scale wave can reach; it bounds what an untrained decoder emits.
MAX_LOG_MAGNITUDE = 1.0


def features(spectra: Complex[Tensor, "B N F"]) -> Float[Tensor, "B N 3F"]:
    """What the encoder sees: log magnitude, and the compressed spectrum's two parts."""
    magnitude = spectra.abs()
    compressed = spectra * (magnitude + FLOOR).pow(COMPRESSION - 1.0)
    log_magnitude = torch.log(magnitude + FLOOR) / 4.0 + 2.0  # roughly unit variance on speech
    return torch.cat([log_magnitude, compressed.real * 4.0, compressed.imag * 4.0], dim=2)


def polar(head: Float[Tensor, "B N 2F"]) -> Complex[Tensor, "B N F"]:
    """Log magnitudes and phases, as the decoder emits them, to a spectrum."""
    log_magnitude, phase = head.chunk(2, dim=2)
    magnitude = torch.exp(log_magnitude.clamp(max=MAX_LOG_MAGNITUDE))
    return torch.complex(magnitude * torch.cos(phase), magnitude * torch.sin(phase))


def scaled(head: Float[Tensor, "B N 3F"]) -> Complex[Tensor, "B N F"]:
    """Log magnitudes and the two parts that they scale, as the decoder emits them, to a spectrum.

    The parts are linear in the decoder's last layer, as the wave is in its spectrum: a phase that
    the codes carry needs no unwrapping.
    """
    log_magnitude, real, imaginary = head.chunk(3, dim=2)
    magnitude = torch.exp(log_magnitude.clamp(max=MAX_LOG_MAGNITUDE))
    return torch.complex(magnitude * real, magnitude * imaginary)
