"""SoundStream: a causal convolutional encoder and decoder around a residual quantizer.

Zeghidour et al., arXiv 2107.03312 (networks: section III and figure 3; loss: equation 8, after
Gritsenko et al., arXiv 2008.01160), at the rates that AudioLM uses (arXiv 2209.03143).

All convolutions are causal and no layer normalises over time: an output depends on nothing that
comes later. Each layer sees zeros before the first sample of a stream. A stream that comes in
chunks keeps the last samples that each layer saw in a ``Past``, and uses them instead of zeros.

Shape legend: B batch, T samples, N frames, Q levels, D latent channels, C channels, M spectra,
F mel bands.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
import torchaudio
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import elu, pad
from torch.nn.utils.parametrizations import weight_norm

from segue.core.interfaces import (
    Ids,
    Lengths,
    StreamingDecoder,
    StreamingEncoder,
    Tokens,
    Wave,
    WaveBatch,
)
from segue.plugins.layers.lengths import length_mask, without_padding
from segue.plugins.tokenizers.common.codec import Attempt, TrainedCodec
from segue.plugins.tokenizers.common.quantizer import ResidualQuantizer, in_single_precision
from segue.plugins.tokenizers.soundstream.config import SoundStreamOptions

WINDOWS = (64, 128, 256, 512, 1024, 2048)  # samples; hops are a quarter of them
NUM_MELS = 64
FLOOR = 1e-4  # of magnitudes: the noise of 16 bits lies about here
POWER_FLOOR = 1e-10  # keeps gradients of magnitudes finite at zero


class SpectralLoss(nn.Module):
    """Average ``MelDistance`` over all resolutions."""

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        self.distances = nn.ModuleList(MelDistance(sample_rate, window) for window in WINDOWS)

    def forward(self, made: Wave, real: Wave) -> Float[Tensor, ""]:
        """Return the loss; both waves must be zero beyond each row's length."""
        return torch.stack([distance(made, real) for distance in self.distances]).mean()


class MelDistance(nn.Module):
    """Compute ``|S - S'| + a |log S - log S'|_2`` at one resolution, ``a = sqrt(window / 2)``.

    The first norm is a mean over bins and frames. The second is one norm per frame, of which the
    mean is taken, divided by the number of bins too: the ratio of the two is the paper's.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, sample_rate: int, window: int) -> None:
        super().__init__()
        self.size = window
        self.weight: float = (window / 2) ** 0.5 / NUM_MELS
        with warnings.catch_warnings():
            # The smallest windows have fewer bins than mel bands: some bands are empty.
            warnings.simplefilter("ignore", UserWarning)
            filters = torchaudio.functional.melscale_fbanks(
                window // 2 + 1, 0.0, sample_rate / 2, NUM_MELS, sample_rate, None, "htk"
            )
        shape = torch.hann_window(window)
        shape = shape / shape.square().sum().sqrt()
        self.register_buffer("window", shape, persistent=False)
        self.register_buffer("filters", filters, persistent=False)

    def forward(self, made: Wave, real: Wave) -> Float[Tensor, ""]:
        made_mel = self._mel(made)
        with torch.no_grad():
            real_mel = self._mel(real)
        logs = (made_mel + FLOOR).log() - (real_mel + FLOOR).log()
        # The gradient of a norm is undefined where both spectra are equal.
        norms = (logs.square().sum(dim=2) + POWER_FLOOR).sqrt()
        return (made_mel - real_mel).abs().mean() + norms.mean() * self.weight

    def _mel(self, wave: Wave) -> Float[Tensor, "B M F"]:
        spectrum = torch.stft(
            wave, self.size, self.size // 4, window=self.window, pad_mode="constant",
            return_complex=True,
        )  # fmt: skip
        power = spectrum.real.square() + spectrum.imag.square()
        magnitude = (power + POWER_FLOOR).sqrt()
        return magnitude.transpose(1, 2) @ self.filters


Conv = nn.Conv1d | nn.ConvTranspose1d
Samples = Float[Tensor, "B C T"]
Activation = Callable[[Tensor], Tensor]

LAST_KERNEL = 3  # of the encoder
FIRST_SHARE = 0.3  # of a residual unit's contribution when training starts


class Past:
    """Keep what the layers of one stream saw last; empty before the first chunk."""

    def __init__(self) -> None:
        self._seen: dict[nn.Module, Tensor] = {}

    def extend(self, layer: nn.Module, x: Samples, context: int) -> Samples:
        """Return a layer's chunk after the ``context`` samples before it, zeros at the start."""
        before = self._seen.get(layer)
        extended = pad(x, (context, 0)) if before is None else torch.cat([before, x], dim=2)
        # What the next chunk's first outputs still need; a shorter chunk keeps part of the old
        # past.
        self._seen[layer] = extended[:, :, extended.shape[2] - context :]
        return extended


class CausalLayer(nn.Module):
    """Convolve the input and the ``context`` samples before it.

    Args:
        normalise: parametrise the weight by length and direction.
        share: of the input's amplitude that the output has at the start.
    """

    def __init__(
        self,
        conv: Conv,
        context: int,
        activate: Activation | None,
        normalise: bool,
        share: float = 1.0,
    ) -> None:
        super().__init__()
        # PyTorch's default loses two thirds of the energy in each layer; biases then drown the
        # signal and the quantizer finds only a few codes.
        reach = context + 1 if conv.transposed else conv.kernel_size[0]
        fan_in = conv.in_channels // conv.groups * reach
        nn.init.normal_(conv.weight, std=share / fan_in**0.5)
        assert conv.bias is not None
        nn.init.zeros_(conv.bias)
        self.conv = weight_norm(conv) if normalise else conv
        self.context, self.activate = context, activate

    def forward(self, x: Samples, past: Past | None = None) -> Samples:
        if self.activate is not None:
            x = self.activate(x)
        x = pad(x, (self.context, 0)) if past is None else past.extend(self, x, self.context)
        return self.conv(x)


class CausalConv(CausalLayer):
    """Return ``T / stride`` outputs of T inputs, a multiple of ``stride``."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        activate: Activation | None = elu,
        normalise: bool = False,
        share: float = 1.0,
    ) -> None:
        conv = nn.Conv1d(inputs, outputs, kernel, stride, dilation=dilation, groups=groups)
        context = (kernel - 1) * dilation + 1 - stride
        super().__init__(conv, context, activate, normalise, share)


class CausalUpsampling(CausalLayer):
    """Return ``T * stride`` outputs of T inputs, each made of its input and those before it.

    Args:
        reach: inputs that an output is made of.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        reach: int = 2,
        groups: int = 1,
        activate: Activation | None = elu,
        normalise: bool = False,
    ) -> None:
        conv = nn.ConvTranspose1d(inputs, outputs, reach * stride, stride, groups=groups)
        super().__init__(conv, reach - 1, activate, normalise)
        self.margin = (reach - 1) * stride

    def forward(self, x: Samples, past: Past | None = None) -> Samples:
        # The first and the last outputs lack some of their inputs: the former were emitted with
        # the chunk before, the latter will be with the next.
        return super().forward(x, past)[:, :, self.margin : -self.margin]


class ResidualUnit(nn.Module):
    """Add a dilated convolution, followed by one per sample, to the input."""

    def __init__(self, channels: int, kernel: int, dilation: int, normalise: bool) -> None:
        super().__init__()
        self.wide = CausalConv(channels, channels, kernel, dilation=dilation, normalise=normalise)
        self.narrow = CausalConv(channels, channels, 1, normalise=normalise, share=FIRST_SHARE)

    def forward(self, x: Samples, past: Past | None = None) -> Samples:
        return x + self.narrow(self.wide(x, past), past)


class CausalStack(nn.Module):
    """Run layers one after another, all with the same past."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Samples, past: Past | None = None) -> Samples:
        for layer in self.layers:
            x = layer(x, past)
        return x


class SoundStream(TrainedCodec):
    """Encode audio to Q residual levels of codes per frame, and decode it, without look-ahead."""

    config: SoundStreamOptions

    def __init__(self, config: SoundStreamOptions) -> None:
        super().__init__(config)
        self.encoder = self.new_encoder()
        self.quantizer = ResidualQuantizer(
            config.num_levels, config.codebook_size, config.latent_dim, config.codebook_decay,
            config.revive_below, config.quantizer_dropout, kmeans_vectors=config.kmeans_frames,
        )  # fmt: skip
        self.decoder = self.new_decoder()
        self.spectral_loss = SpectralLoss(config.sample_rate)

    def new_encoder(self) -> CausalStack:
        """Build the network from ``[B, 1, N * hop]`` samples to ``[B, D, N]`` latent frames."""
        config, width = self.config, self.config.channels
        norm = config.weight_norm
        layers: list[nn.Module] = [
            CausalConv(1, width, config.kernel, activate=None, normalise=norm)
        ]
        for stride in config.strides:
            layers += self.residual_units(width)
            layers.append(CausalConv(width, 2 * width, 2 * stride, stride, normalise=norm))
            width *= 2
        layers.append(CausalConv(width, config.latent_dim, LAST_KERNEL, normalise=norm))
        return CausalStack(layers)

    def new_decoder(self) -> CausalStack:
        """Build the network from ``[B, D, N]`` latent frames to ``[B, 1, N * hop]`` samples."""
        config, norm = self.config, self.config.weight_norm
        width = config.channels * 2 ** len(config.strides)
        layers: list[nn.Module] = [
            CausalConv(config.latent_dim, width, config.kernel, activate=None, normalise=norm)
        ]
        for stride in reversed(config.strides):
            layers.append(CausalUpsampling(width, width // 2, stride, normalise=norm))
            width //= 2
            layers += self.residual_units(width)
        layers.append(CausalConv(width, 1, config.kernel, normalise=norm))
        return CausalStack(layers)

    def residual_units(self, width: int) -> list[nn.Module]:
        config = self.config
        return [
            ResidualUnit(width, config.kernel, dilation, config.weight_norm)
            for dilation in config.dilations
        ]

    @property
    def dtype(self) -> torch.dtype:
        """Return the type of the weights, to which audio is converted."""
        return next(self.parameters()).dtype

    @property
    def can_stream(self) -> bool:
        return True

    @torch.no_grad()
    def encode(self, wave: Wave, lengths: Lengths) -> Tokens:
        # Without look-ahead, zeros beyond a row's length are enough to encode it as if alone.
        ids = self.analyse(self._framed(wave, lengths))
        tokens = Tokens(ids, -(-lengths // self.config.hop))
        return Tokens(ids * tokens.mask[:, None], tokens.lengths)

    @torch.no_grad()
    def decode(self, codes: Ids, lengths: Lengths) -> Wave:
        return without_padding(self.synthesise(codes), lengths * self.config.hop)

    def streaming_decoder(self) -> SoundStreamDecoder:
        return SoundStreamDecoder(self)

    def streaming_encoder(self) -> SoundStreamEncoder:
        return SoundStreamEncoder(self)

    @torch.no_grad()
    def vectors(self, ids: Ids) -> Float[Tensor, "B N D"]:
        return self.quantizer.decode(ids)

    def analyse(self, wave: Wave, past: Past | None = None) -> Ids:
        """Return the ``[B, Q, N]`` codes of ``[B, N * hop]`` samples that come after ``past``."""
        if wave.shape[1] == 0:
            return Tokens.empty(wave.shape[0], self.config.num_levels, wave.device).ids
        return self.quantizer.encode(self._latents(wave.to(self.dtype), past))

    def synthesise(self, codes: Ids, past: Past | None = None) -> Wave:
        """Return the ``[B, N * hop]`` samples of ``[B, q, N]`` codes that come after ``past``."""
        if codes.shape[2] == 0:
            return torch.zeros(codes.shape[0], 0, dtype=self.dtype, device=codes.device)
        return self._wave(self.quantizer.decode(codes), past)

    def attempt(self, batch: WaveBatch) -> Attempt:
        wave = self._framed(batch.wave, batch.lengths)
        hop = self.config.hop
        mask = length_mask(-(-batch.lengths // hop), wave.shape[1] // hop).to(self.dtype)
        quantized = self.quantizer(self._latents(wave, None), mask)
        made = without_padding(self._wave(quantized.latents, None), batch.lengths)
        with in_single_precision(wave):
            distance = self.spectral_loss(made.float(), wave)
        loss = self.config.loss.reconstruction * distance
        return Attempt(wave, made, quantized, mask, loss, {"reconstruction": distance})

    def _framed(self, wave: Wave, lengths: Lengths) -> Wave:
        """Return a whole number of frames, zero beyond each row's length."""
        missing = -wave.shape[1] % self.config.hop
        return pad(without_padding(wave.to(self.dtype), lengths), (0, missing))

    def _latents(self, wave: Wave, past: Past | None) -> Float[Tensor, "B N D"]:
        return self.encoder(wave[:, None], past).transpose(1, 2)

    def _wave(self, latents: Float[Tensor, "B N D"], past: Past | None) -> Wave:
        return self.decoder(latents.transpose(1, 2), past)[:, 0]


class SoundStreamDecoder(StreamingDecoder):
    """Return each frame's samples as soon as the frame is known."""

    def __init__(self, codec: SoundStream) -> None:
        self._codec = codec
        self._past, self._rows = Past(), 0

    @torch.no_grad()
    def push(self, codes: Ids) -> Wave:
        self._rows = codes.shape[0]
        return self._codec.synthesise(codes, self._past)

    def finish(self) -> Wave:
        rest = torch.zeros(self._rows, 0, dtype=self._codec.dtype, device=self._codec.device)
        self._past, self._rows = Past(), 0
        return rest


class SoundStreamEncoder(StreamingEncoder):
    """Return each frame's codes as soon as its last sample is known."""

    def __init__(self, codec: SoundStream) -> None:
        self._codec = codec
        self._past = Past()
        self._waiting: Tensor | None = None  # samples of a frame that is not full yet

    @torch.no_grad()
    def push(self, wave: Wave) -> Ids:
        # A frame is encoded once it is full; its rest waits for the next chunk.
        known = wave if self._waiting is None else torch.cat([self._waiting, wave], dim=1)
        full = known.shape[1] - known.shape[1] % self._codec.config.hop
        self._waiting = known[:, full:]
        return self._codec.analyse(known[:, :full], self._past)

    @torch.no_grad()
    def finish(self) -> Ids:
        rest = torch.zeros(0, 0) if self._waiting is None else self._waiting
        missing = -rest.shape[1] % self._codec.config.hop
        codes = self._codec.analyse(pad(rest, (0, missing)), self._past)
        self._past, self._waiting = Past(), None
        return codes
