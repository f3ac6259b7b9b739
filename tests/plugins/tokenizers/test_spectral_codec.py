"""Encoding and decoding of the spectral codec."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from segue.core.interfaces import Tokens
from segue.plugins.tokenizers.common.spectra import Framing
from segue.plugins.tokenizers.spectral_codec.config import SpectralCodecOptions, SpectralLossWeights
from segue.plugins.tokenizers.spectral_codec.model import SpectralCodec


def random_codes(codec: SpectralCodec, rows: int, frames: int) -> torch.Tensor:
    spec = codec.spec
    return torch.randint(spec.codebook_size, (rows, spec.num_levels, frames))


def test_decode_context_is_no_wider_than_needed(codec: SpectralCodec) -> None:
    assert codec.decode_context is not None
    left, right = codec.decode_context
    codes = random_codes(codec, 1, left + right + 1)
    other = codes.clone()
    other[:, :, left] = (other[:, :, left] + 1) % codec.spec.codebook_size
    lengths = Tokens.full(codes).lengths
    change = (codec.decode(codes, lengths) - codec.decode(other, lengths)).abs()
    per_frame = change.view(-1, 320).amax(dim=1)
    assert per_frame[1:-1].all()


def test_levels_asked_for_are_the_levels_decoded(codec: SpectralCodec) -> None:
    codec.train()  # in training mode levels are dropped, but not here
    codes = random_codes(codec, 2, 6)
    lengths = Tokens.full(codes).lengths
    waves = [codec.decode(codes[:, :count], lengths) for count in (1, 2, 3)]
    assert not torch.equal(waves[0], waves[1]) and not torch.equal(waves[1], waves[2])
    first = codec.quantizer.levels()[0].codes[codes[:, 0]]
    torch.testing.assert_close(codec.quantizer.decode(codes[:, :1]), first)


@pytest.mark.parametrize("samples", [0, 1, 641])
def test_silent_and_short_audio(codec: SpectralCodec, samples: int) -> None:
    tokens = codec.encode(torch.zeros(2, samples), torch.tensor([samples, samples // 2]))
    assert tokens.lengths.tolist() == [-(-samples // 320), -(-(samples // 2) // 320)]
    assert codec.decode(tokens.ids, tokens.lengths).isfinite().all()


def test_a_spectrum_synthesised_is_the_wave_analysed() -> None:
    framing = Framing(160, 640)
    wave = torch.randn(2, 3200)
    mask = (torch.arange(20) < torch.tensor([[20], [9]])).float()
    wave = wave * mask.repeat_interleave(160, dim=1)
    back = framing.synthesise(framing.analyse(wave), mask)
    torch.testing.assert_close(back, wave, atol=1e-4, rtol=0)


def test_default_options_make_a_small_file() -> None:
    state = SpectralCodec(SpectralCodecOptions()).state_dict()
    assert sum(value.numel() * value.element_size() for value in state.values()) < 30e6


def test_options_of_training_change_no_token(codec_options: SpectralCodecOptions) -> None:
    torch.manual_seed(0)
    codec = SpectralCodec(codec_options)
    fingerprint = codec.seal("spectral_codec.v1")
    trained = {
        "quantizer_dropout": 0.1,
        "codebook_decay": 0.5,
        "loss": SpectralLossWeights(mel=3.0),
    }
    codec.config = codec_options.model_copy(update=trained)
    assert codec.seal("spectral_codec.v1") == fingerprint
    codec.config = codec_options.model_copy(update={"window": 960})
    assert codec.seal("spectral_codec.v1") != fingerprint


@pytest.mark.parametrize(
    "wrong",
    [
        {"widht": 3},
        {"kernel": 4},
        {"hop": 300, "sample_rate": 16000, "subframes": 7},
        {"window": 100},
        {"window": 641},
        {"loss": {"gan": 1.0}},
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SpectralCodecOptions.model_validate(wrong)
