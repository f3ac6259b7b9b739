"""Audio and tiny tokenizers for the tokenizers' tests."""

from __future__ import annotations

import copy

import pytest
import torch

from segue.core.interfaces import WaveBatch
from segue.plugins.tokenizers.spectral_codec.config import SpectralCodecOptions
from segue.plugins.tokenizers.spectral_codec.model import SpectralCodec
from segue.testing import ragged_audio

#: Samples of each row: broken and whole frames, less than a frame.
LENGTHS = [8000, 5121, 640, 321, 5]


@pytest.fixture(scope="session")
def audio() -> WaveBatch:
    """A ragged batch with noise beyond each row's end."""
    batch = ragged_audio(LENGTHS, 16_000)
    beyond = torch.arange(batch.wave.shape[1]) >= batch.lengths[:, None]
    noise = torch.rand(batch.wave.shape, generator=torch.Generator().manual_seed(0)) - 0.5
    return WaveBatch(torch.where(beyond, noise, batch.wave), batch.lengths)


@pytest.fixture(scope="session")
def codec_options() -> SpectralCodecOptions:
    return SpectralCodecOptions(
        width=16, encoder_depth=1, decoder_depth=2, num_levels=3, codebook_size=32, codebook_dim=4
    )


@pytest.fixture(scope="session")
def moved_codec(codec_options: SpectralCodecOptions, audio: WaveBatch) -> SpectralCodec:
    torch.manual_seed(0)
    codec = SpectralCodec(codec_options).train()
    for _ in range(2):
        codec.training_step(audio)
    return codec.eval()


@pytest.fixture
def codec(moved_codec: SpectralCodec) -> SpectralCodec:
    """A codec whose codebooks were moved onto audio, in eval mode; the random state is 0."""
    torch.manual_seed(0)
    return copy.deepcopy(moved_codec)
