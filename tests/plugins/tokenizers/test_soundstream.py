"""SoundStream: frames, causality, streaming, training."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from pydantic import ValidationError

from segue.core.interfaces import StreamingDecoder, Tokens, WaveBatch
from segue.plugins.tokenizers.soundstream.config import SoundStreamOptions
from segue.plugins.tokenizers.soundstream.model import MelDistance, SoundStream, SpectralLoss
from segue.testing import ragged_audio

ADVERSARY = {"wave_scales": (1, 2), "wave_channels": 2, "stft_windows": (256,), "stft_channels": 2}
SMALL = {
    "channels": 4,
    "latent_dim": 8,
    "num_levels": 3,
    "codebook_size": 32,
    "adversary": ADVERSARY,
}


def options(**others: object) -> SoundStreamOptions:
    return SoundStreamOptions.model_validate(SMALL | others)


@pytest.fixture(scope="module")
def moved(audio: WaveBatch) -> SoundStream:
    torch.manual_seed(0)
    codec = SoundStream(options()).train()
    for _ in range(2):
        codec.training_step(audio)
    return codec.eval()


@pytest.fixture
def stream(moved: SoundStream) -> SoundStream:
    """A codec whose codebooks were moved onto audio, in eval mode; the random state is 0."""
    torch.manual_seed(0)
    return copy.deepcopy(moved)


def random_codes(codec: SoundStream, rows: int, frames: int) -> torch.Tensor:
    return torch.randint(32, (rows, 3, frames), generator=torch.Generator().manual_seed(0))


def decode(codec: SoundStream, codes: torch.Tensor) -> torch.Tensor:
    return codec.decode(codes, Tokens.full(codes).lengths)


# --- frames -----------------------------------------------------------------------------------


def test_the_defaults_are_those_of_the_paper() -> None:
    spec = SoundStreamOptions().spec()
    assert (spec.sample_rate, spec.frame_rate, spec.frame_size) == (16000, 50, 320)
    assert spec.num_levels * math.log2(spec.codebook_size) * spec.frame_rate == 6000
    codec = SoundStream(SoundStreamOptions())
    weights = [sum(p.numel() for p in part.parameters()) for part in (codec.encoder, codec.decoder)]
    # Of the order of the paper's 8.4 million (from memory); its latent width is not stated.
    assert all(4.5e6 < count < 5.2e6 for count in weights)


@pytest.mark.parametrize("samples", [0, 1, 321])
def test_short_audio(stream: SoundStream, samples: int) -> None:
    tokens = stream.encode(torch.zeros(2, samples), torch.tensor([samples, samples // 2]))
    assert tokens.lengths.tolist() == [-(-samples // 320), -(-(samples // 2) // 320)]
    wave = stream.decode(tokens.ids, tokens.lengths)
    assert wave.shape == (2, 320 * int(tokens.lengths[0])) and wave.isfinite().all()


@pytest.mark.parametrize(("strides", "kernel"), [((2,), 1), ((3, 5), 4)])
def test_any_strides_and_kernels_give_whole_frames(strides: tuple[int, ...], kernel: int) -> None:
    chosen = options(strides=strides, kernel=kernel, channels=2, weight_norm=True)
    codec = SoundStream(chosen).eval()
    hop = math.prod(strides)
    assert codec.spec.frame_size == hop
    tokens = codec.encode(torch.randn(1, 7 * hop - 1), torch.tensor([7 * hop - 1]))
    assert tokens.ids.shape == (1, 3, 7)
    assert decode(codec, tokens.ids).shape == (1, 7 * hop)


# --- causality and streaming ------------------------------------------------------------------


def test_nothing_depends_on_what_comes_later(stream: SoundStream) -> None:
    wave = torch.randn(1, 3200)
    other = torch.cat([wave[:, :1600], torch.randn(1, 1600)], dim=1)
    with torch.no_grad():
        here, there = (stream._latents(w, None) for w in (wave, other))
    assert torch.equal(here[:, :5], there[:, :5]) and not torch.equal(here[:, 5], there[:, 5])
    codes = random_codes(stream, 1, 10)
    changed = codes.clone()
    changed[:, :, 5:] = (changed[:, :, 5:] + 1) % 32
    here, there = decode(stream, codes), decode(stream, changed)
    torch.testing.assert_close(here[:, :1600], there[:, :1600], atol=1e-6, rtol=0)
    assert not torch.equal(here[:, 1600:1920], there[:, 1600:1920])


@pytest.mark.parametrize("sizes", [[1, 5, 1, 5], [12]])
def test_each_frame_pushed_comes_out_at_once(stream: SoundStream, sizes: list[int]) -> None:
    codes = random_codes(stream, 2, 12)
    decoder = stream.streaming_decoder()
    assert isinstance(decoder, StreamingDecoder)
    pieces = [decoder.push(part) for part in codes.split(sizes, dim=2)]
    assert [piece.shape[1] for piece in pieces] == [320 * size for size in sizes]
    assert decoder.finish().shape == (2, 0)
    torch.testing.assert_close(torch.cat(pieces, dim=1), decode(stream, codes), atol=1e-5, rtol=0)


@pytest.mark.parametrize("sizes", [[1, 318, 2, 959, 1033], [0, 640, 640, 1033]])
def test_encoding_in_chunks_changes_nothing(stream: SoundStream, sizes: list[int]) -> None:
    wave = 0.3 * torch.randn(2, 2313)
    encoder = stream.streaming_encoder()
    pieces, known = [], 0
    for part in wave.split(sizes, dim=1):
        pieces.append(encoder.push(part))
        known += part.shape[1]
        # All full frames are out: no more than 20 ms are withheld.
        assert sum(piece.shape[2] for piece in pieces) == known // 320
    pieces.append(encoder.finish())
    offline = stream.encode(wave, torch.tensor([2313, 2313]))
    assert torch.equal(torch.cat(pieces, dim=2), offline.ids)


# --- training ---------------------------------------------------------------------------------


def test_a_few_steps_lower_the_loss_and_log_the_codebooks() -> None:
    torch.manual_seed(0)
    audio = ragged_audio([4000, 2500], 16_000)
    codec = SoundStream(options(quantizer_dropout=0.0)).train()
    optimizer = torch.optim.Adam(codec.parameters(), lr=2e-3)
    losses = []
    for _ in range(12):
        figures = codec.training_step(audio)
        optimizer.zero_grad()
        figures["loss"].backward()
        optimizer.step()
        losses.append(float(figures["reconstruction"]))
    assert losses[-1] < 0.8 * losses[0]
    assert {"use_0", "use_2", "perplexity_0", "perplexity_2", "commitment"} <= set(figures)
    assert 0 < figures["codebook_use"] <= 1 and 0 < figures["codebook_perplexity"] <= 1


def test_what_lies_beyond_a_row_changes_no_loss(audio: WaveBatch) -> None:
    codec = SoundStream(options()).eval()
    inside = torch.arange(audio.wave.shape[1]) < audio.lengths[:, None]
    silent = WaveBatch(audio.wave * inside, audio.lengths)
    assert codec.training_step(silent)["loss"] == codec.training_step(audio)["loss"]


def test_an_adversarial_step_adds_weighted_terms_for_both_sides(audio: WaveBatch) -> None:
    torch.manual_seed(0)
    codec = SoundStream(options()).eval()
    adversary = codec.adversary()
    assert adversary is not None
    figures = codec.adversarial_step(audio, adversary)
    weights = codec.config.loss.model_dump()
    total = sum(weight * float(figures[name].detach()) for name, weight in weights.items())
    assert float(figures["loss"].detach()) == pytest.approx(total, rel=1e-4)
    assert {"score_real", "score_made"} <= set(figures)
    for loss, side in (("adversary_loss", adversary), ("loss", codec)):
        learnt = [p for p in side.parameters() if p.requires_grad]
        grads = torch.autograd.grad(figures[loss], learnt, retain_graph=True, allow_unused=True)
        assert all(grad is not None and grad.isfinite().all() for grad in grads)


def test_without_discriminators_there_is_no_adversary() -> None:
    none = ADVERSARY | {"wave_scales": (), "stft_windows": ()}
    assert SoundStream(options(adversary=none)).adversary() is None


def test_the_adversary_is_no_part_of_the_codec(audio: WaveBatch) -> None:
    codec = SoundStream(options()).eval()
    before = set(codec.state_dict())
    adversary = codec.adversary()
    assert adversary is not None
    codec.adversarial_step(audio, adversary)
    assert set(codec.state_dict()) == before


def test_the_spectral_loss_is_the_paper_s() -> None:
    torch.manual_seed(0)
    wave, other = 0.1 * torch.randn(2, 4000), 0.1 * torch.randn(2, 4000)
    loss = SpectralLoss(16000)
    assert loss(wave, wave) < 1e-3 < loss(other, wave)
    distance = MelDistance(16000, 512)
    here, there = distance._mel(wave), distance._mel(other)
    logs = torch.log(here + 1e-4) - torch.log(there + 1e-4)
    # Equation 8, summed over the 64 bins, is 64 times ours.
    paper = (here - there).abs().sum(dim=2) + 16 * logs.norm(dim=2)
    assert distance(wave, other).item() == pytest.approx(paper.mean().item() / 64, rel=1e-4)


def test_silence_has_finite_gradients() -> None:
    silence = torch.zeros(1, 1000, requires_grad=True)
    SpectralLoss(16000)(silence, torch.zeros(1, 1000)).backward()
    assert silence.grad is not None and silence.grad.isfinite().all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"strides": ()},
        {"strides": (1, 2)},
        {"dilations": ()},
        {"chanels": 3},
        {"adversary": {"stft_windows": (30,)}},
        {"loss": {"gan": 1.0}},
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        options(**wrong)
