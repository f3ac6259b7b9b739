"""The spectral codec: STFT features, ConvNeXt blocks, residual quantization, inverse STFT.

The decoder predicts a spectrum per frame, as Vocos does (Siuzdak, arXiv 2306.00814), which on a CPU
costs 10 to 100 times less than upsampling in the time domain. It is trained by log-mel and
log-magnitude distances at several resolutions (Yamamoto et al., arXiv 1910.11480; Défossez et al.,
arXiv 2210.13438), and by a distance of compressed complex spectra (Braun & Tashev, arXiv
2009.12286) that ties phases where they can be coded.

Shape legend: B batch, T samples, N frames, Q levels, D channels, F frequencies, M spectra.
"""

from __future__ import annotations

import torch
import torchaudio
from jaxtyping import Complex, Float
from torch import Tensor, nn

from segue.core.interfaces import Ids, Lengths, Tokens, Wave, WaveBatch
from segue.plugins.layers.lengths import length_mask, without_padding
from segue.plugins.tokenizers.common.codec import Attempt, TrainedCodec
from segue.plugins.tokenizers.common.quantizer import ResidualQuantizer, in_single_precision
from segue.plugins.tokenizers.common.spectra import Framing
from segue.plugins.tokenizers.spectral_codec.config import SpectralCodecOptions, SpectralLossWeights

Frames = Float[Tensor, "B N D"]

# Exponent that brings loud and soft partials closer together, as is usual in speech enhancement
# (e.g. Braun & Tashev, arXiv 2009.12286).
COMPRESSION = 0.3
FLOOR = 1e-5
# exp(1) is more than a full-scale wave can reach; it bounds an untrained decoder.
MAX_LOG_MAGNITUDE = 1.0


def features(spectra: Complex[Tensor, "B N F"]) -> Float[Tensor, "B N 3F"]:
    """Return the encoder's input: log magnitude and the two parts of the compressed spectrum."""
    magnitude = spectra.abs()
    compressed = spectra * (magnitude + FLOOR).pow(COMPRESSION - 1.0)
    log_magnitude = torch.log(magnitude + FLOOR) / 4.0 + 2.0  # roughly unit variance on speech
    return torch.cat([log_magnitude, compressed.real * 4.0, compressed.imag * 4.0], dim=2)


def polar(head: Float[Tensor, "B N 2F"]) -> Complex[Tensor, "B N F"]:
    """Make a spectrum of the decoder's log magnitudes and phases."""
    log_magnitude, phase = head.chunk(2, dim=2)
    magnitude = torch.exp(log_magnitude.clamp(max=MAX_LOG_MAGNITUDE))
    return torch.complex(magnitude * torch.cos(phase), magnitude * torch.sin(phase))


def scaled(head: Float[Tensor, "B N 3F"]) -> Complex[Tensor, "B N F"]:
    """Make a spectrum of the decoder's log magnitudes and the two parts that they scale.

    The parts are linear in the decoder's last layer, as the wave is in its spectrum: a phase that
    the codes carry needs no unwrapping.
    """
    log_magnitude, real, imaginary = head.chunk(3, dim=2)
    magnitude = torch.exp(log_magnitude.clamp(max=MAX_LOG_MAGNITUDE))
    return torch.complex(magnitude * real, magnitude * imaginary)


#: Numbers that the decoder emits per frequency, and the function that makes a spectrum of them.
HEADS = {"complex": (3, scaled), "polar": (2, polar)}


class FrameConv(nn.Module):
    """Convolve over time, channels last, with zeros beyond both ends.

    The input must be zero at padding; the output is not.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2, groups=groups)

    def forward(self, x: Frames) -> Frames:
        return self.conv(x.transpose(1, 2)).transpose(1, 2)


class ConvNeXtBlock(nn.Module):
    """Add a depthwise convolution over time and a two-layer network per frame to the input.

    ConvNeXt (Liu et al., arXiv 2201.03545) in one dimension, as in Vocos (Siuzdak,
    arXiv 2306.00814). Normalisation is per frame, so that a row does not depend on its batch.

    Args:
        scale: initial size of the block's contribution.
    """

    def __init__(self, width: int, hidden: int, kernel: int, scale: float) -> None:
        super().__init__()
        self.mix = FrameConv(width, width, kernel, groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, hidden)
        self.contract = nn.Linear(hidden, width)
        self.scale = nn.Parameter(torch.full((width,), scale))

    def forward(self, x: Frames, mask: Float[Tensor, "B N 1"]) -> Frames:
        h = self.expand(self.norm(self.mix(x)))
        return x + self.contract(nn.functional.gelu(h)) * self.scale * mask


class FrameStack(nn.Module):
    """Stack an input convolution, blocks and an output layer per frame.

    Args:
        upsampling: output frames per input frame; the blocks work at the output's rate.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        width: int,
        hidden: int,
        depth: int,
        kernel: int,
        first_kernel: int,
        upsampling: int = 1,
    ) -> None:
        super().__init__()
        self.width = width
        self.first_reach, self.reach = first_kernel // 2, depth * (kernel // 2)
        self.enter = FrameConv(inputs, width * upsampling, first_kernel)
        self.enter_norm = nn.LayerNorm(width)
        blocks = (ConvNeXtBlock(width, hidden, kernel, 1.0 / depth) for _ in range(depth))
        self.blocks = nn.ModuleList(blocks)
        self.leave_norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, outputs)

    def forward(self, x: Frames, mask: Float[Tensor, "B M"]) -> Frames:
        """Return output frames, which have no meaning at padding.

        Args:
            x: input frames, zero at padding.
            mask: 1 at valid output frames, of which there are ``M = N * upsampling``.
        """
        valid = mask[..., None]
        x = self.enter(x).reshape(x.shape[0], -1, self.width)
        x = self.enter_norm(x) * valid
        for block in self.blocks:
            x = block(x, valid)
        return self.leave(self.leave_norm(x))


# (samples of the window, mel bands). Hops are a quarter of the window.
RESOLUTIONS = ((256, 32), (512, 64), (1024, 80), (2048, 96))
# A little above the noise of a 16-bit file: nothing is gained by matching what is below.
MAGNITUDE_FLOOR = 1e-5
POWER_FLOOR = 1e-12
SILENT_POWER = 1e-5  # of a wave at -50 dB


class ReconstructionLoss(nn.Module):
    """Compute the weighted sum of all reconstruction losses, and each by itself."""

    def __init__(self, sample_rate: int, weights: SpectralLossWeights) -> None:
        super().__init__()
        self.weights = weights
        resolutions = (Resolution(sample_rate, size, mels) for size, mels in RESOLUTIONS)
        self.resolutions = nn.ModuleList(resolutions)

    def forward(self, wave: Wave, target: Wave) -> dict[str, Tensor]:
        """Return the losses by name; both waves must be zero beyond each row's length."""
        parts = [resolution(wave, target) for resolution in self.resolutions]
        named = {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}
        named["waveform"] = _relative_error(wave, target)
        weights = self.weights.model_dump()
        total = torch.stack([weights[name] * value for name, value in named.items()]).sum()
        return {"reconstruction": total, **named}


class Resolution(nn.Module):
    """Compute the losses at one window size."""

    window: Tensor
    filters: Tensor

    def __init__(self, sample_rate: int, window: int, num_mels: int) -> None:
        super().__init__()
        self.size, self.hop = window, window // 4
        filters = torchaudio.functional.melscale_fbanks(
            window // 2 + 1, 0.0, sample_rate / 2, num_mels, sample_rate, norm=None, mel_scale="htk"
        )
        self.register_buffer("window", torch.hann_window(window), persistent=False)
        self.register_buffer("filters", filters, persistent=False)

    def forward(self, wave: Wave, target: Wave) -> dict[str, Tensor]:
        with torch.no_grad():
            real = self._spectrum(target)
            real_size = _magnitude(real)
        made = self._spectrum(wave)
        made_size = _magnitude(made)
        made_mel = made_size.transpose(1, 2) @ self.filters
        real_mel = real_size.transpose(1, 2) @ self.filters
        # Over the whole batch, so that a silent crop does not divide by zero.
        energy = real_size.norm() + 1e-3 * real_size.numel() ** 0.5
        losses = {
            "mel": (_log(made_mel) - _log(real_mel)).abs().mean(),
            "log_magnitude": (_log(made_size) - _log(real_size)).abs().mean(),
            "convergence": (made_size - real_size).norm() / energy,
        }
        exponent = COMPRESSION - 1.0
        gap = torch.view_as_real(made * made_size.pow(exponent) - real * real_size.pow(exponent))
        return losses | {"complex_stft": gap.abs().mean()}

    def _spectrum(self, wave: Wave) -> Complex[Tensor, "B F M"]:
        spectrum = torch.stft(
            wave, self.size, self.hop, window=self.window, pad_mode="constant", return_complex=True
        )
        return spectrum * (2.0 / self.size)


def _relative_error(wave: Wave, target: Wave) -> Tensor:
    """Return the error's share of the amplitude, averaged over rows; silence counts little."""
    error = (wave - target).square().mean(1) / (target.square().mean(1) + SILENT_POWER)
    return (error + 1e-4).sqrt().mean()  # the slope of a root has no bound at zero


def _magnitude(spectrum: Complex[Tensor, "B F M"]) -> Float[Tensor, "B F M"]:
    # Not ``abs``, whose gradient is undefined at zero.
    return (spectrum.real.square() + spectrum.imag.square() + POWER_FLOOR).sqrt()


def _log(magnitude: Tensor) -> Tensor:
    return torch.log(magnitude + MAGNITUDE_FLOOR)


TYPICAL_LOG_MAGNITUDE = -7.0  # of speech: where an untrained decoder starts


class SpectralCodec(TrainedCodec):
    """Encode audio to Q residual levels of codes per frame, and decode it."""

    config: SpectralCodecOptions

    def __init__(self, config: SpectralCodecOptions) -> None:
        super().__init__(config)
        bins = config.window // 2 + 1
        hidden = config.width * config.expansion
        parts, self._spectrum = HEADS[config.head]
        self.analysis = Framing(config.hop, config.window)
        self.synthesis = Framing(config.hop // config.subframes, config.window)
        self.encoder = FrameStack(
            3 * bins, config.codebook_dim, config.width, hidden, config.encoder_depth,
            config.kernel, first_kernel=1,
        )  # fmt: skip
        self.quantizer = ResidualQuantizer(
            config.num_levels, config.codebook_size, config.codebook_dim, config.codebook_decay,
            config.revive_below, config.quantizer_dropout, config.quantizer_bypass,
        )  # fmt: skip
        self.decoder = FrameStack(
            config.codebook_dim, parts * bins, config.width, hidden, config.decoder_depth,
            config.kernel, first_kernel=3, upsampling=config.subframes,
        )  # fmt: skip
        nn.init.constant_(self.decoder.leave.bias[:bins], TYPICAL_LOG_MAGNITUDE)
        self.losses = ReconstructionLoss(config.sample_rate, config.loss)
        # Convolutions and overlapping windows reach this many frames to either side: the context
        # that a streamed decoder needs.
        fine = self.decoder.reach + self.synthesis.reach
        reach = self.decoder.first_reach + -(-fine // config.subframes)
        self.decode_context = (reach, reach)

    @torch.no_grad()
    def encode(self, wave: Wave, lengths: Lengths) -> Tokens:
        frames = -(-lengths // self.config.hop)
        mask = self._frame_mask(wave, lengths)
        if mask.numel() == 0:
            return Tokens.empty(wave.shape[0], self.config.num_levels, wave.device)
        ids = self.quantizer.encode(self._latents(without_padding(wave, lengths), mask))
        return Tokens(ids * mask[:, None].long(), frames)

    @torch.no_grad()
    def decode(self, codes: Ids, lengths: Lengths) -> Wave:
        if codes.shape[2] == 0:
            return torch.zeros(codes.shape[0], 0, device=codes.device)
        mask = length_mask(lengths, codes.shape[2]).float()
        return self._wave(self.quantizer.decode(codes), mask)

    @torch.no_grad()
    def vectors(self, ids: Ids) -> Float[Tensor, "B N D"]:
        return self.quantizer.decode(ids)

    def attempt(self, batch: WaveBatch) -> Attempt:
        wave = without_padding(batch.wave, batch.lengths)
        mask = self._frame_mask(wave, batch.lengths)
        quantized = self.quantizer(self._latents(wave, mask), mask)
        made = self._wave(quantized.latents, mask)[:, : wave.shape[1]]
        made = without_padding(made, batch.lengths)
        with in_single_precision(wave):
            parts = self.losses(made, wave)
        return Attempt(wave, made, quantized, mask, parts["reconstruction"], parts)

    def _frame_mask(self, wave: Wave, lengths: Lengths) -> Float[Tensor, "B N"]:
        hop = self.config.hop
        return length_mask(-(-lengths // hop), -(-wave.shape[1] // hop)).float()

    def _latents(self, wave: Wave, mask: Float[Tensor, "B N"]) -> Float[Tensor, "B N D"]:
        with torch.no_grad():
            inputs = features(self.analysis.analyse(wave)) * mask[..., None]
        return self.encoder(inputs, mask)

    def _wave(self, latents: Float[Tensor, "B N D"], mask: Float[Tensor, "B N"]) -> Wave:
        fine = mask.repeat_interleave(self.config.subframes, dim=1)
        head = self.decoder(latents * mask[..., None], fine)
        # Mixed precision leaves it in half precision, of which torch makes no complex numbers.
        return self.synthesis.synthesise(self._spectrum(head.float()), fine)
