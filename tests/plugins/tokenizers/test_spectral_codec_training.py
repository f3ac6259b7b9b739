"""Training of the spectral codec: losses, codebooks, modes."""

from __future__ import annotations

import pytest
import torch

from segue.core.interfaces import WaveBatch
from segue.plugins.tokenizers.common.codec import CodecAdversary, collapsed
from segue.plugins.tokenizers.common.options import AdversaryOptions
from segue.plugins.tokenizers.common.quantizer import Codebook, ResidualQuantizer
from segue.plugins.tokenizers.spectral_codec.config import SpectralCodecOptions
from segue.plugins.tokenizers.spectral_codec.model import SpectralCodec
from segue.testing import ragged_audio


def test_loss_on_silence_is_finite(codec_options: SpectralCodecOptions) -> None:
    codec = SpectralCodec(codec_options).train()
    lengths = torch.tensor([4000, 0, 17])
    for _ in range(3):
        losses = codec.training_step(WaveBatch(torch.zeros(3, 4000), lengths))
        losses["loss"].backward()  # type: ignore[no-untyped-call]
    assert all(value.isfinite() for value in losses.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in codec.parameters())


def test_loss_falls_on_one_batch(codec_options: SpectralCodecOptions) -> None:
    torch.manual_seed(0)
    audio = ragged_audio([4800, 3200], 16_000)
    codec = SpectralCodec(codec_options.model_copy(update={"quantizer_dropout": 0.0})).train()
    optimizer = torch.optim.AdamW(codec.parameters(), lr=5e-3)
    history = []
    for _ in range(40):
        losses = codec.training_step(audio)
        optimizer.zero_grad()
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        history.append(float(losses["mel"]))
        if history[-1] < 0.6 * history[0]:
            break
    assert history[-1] < 0.6 * history[0]
    assert {"mel", "commitment", "use_0", "use_2", "codebook_use"} <= losses.keys()
    assert float(losses["codebook_use"]) > 0.1  # of 32 codes, by 25 frames


@pytest.mark.parametrize("head", [pytest.param("complex", marks=pytest.mark.slow), "polar"])
def test_every_parameter_learns_from_both_kinds_of_step(
    codec_options: SpectralCodecOptions, audio: WaveBatch, head: str
) -> None:
    codec = SpectralCodec(codec_options.model_copy(update={"head": head})).train()
    adversary = codec.adversary()
    assert adversary is not None
    own, theirs = list(codec.parameters()), list(adversary.parameters())
    losses = codec.adversarial_step(audio, adversary)
    opposed = torch.autograd.grad(losses["adversary_loss"], theirs, retain_graph=True)
    assert all(gradient.any() for gradient in opposed)
    assert all(gradient.any() for gradient in torch.autograd.grad(losses["loss"], own))
    alone = codec.training_step(audio)
    assert all(gradient.any() for gradient in torch.autograd.grad(alone["loss"], own))
    assert losses.keys() - alone.keys() == {
        "adversary_loss", "adversarial", "feature_matching", "score_real", "score_made",
        "adversarial_share",
    }  # fmt: skip


def test_discriminators_learn_to_tell_and_the_codec_to_deceive(
    codec_options: SpectralCodecOptions,
) -> None:
    torch.manual_seed(0)
    audio = ragged_audio([3200, 2500], 16_000)
    critics = AdversaryOptions(
        wave_scales=(), stft_windows=(256,), stft_channels=4, stft_residual=False
    )
    codec = SpectralCodec(codec_options.model_copy(update={"adversary": critics})).train()
    adversary = codec.adversary()
    assert adversary is not None
    critic = torch.optim.AdamW(adversary.parameters(), lr=3e-3)
    for _ in range(30):
        losses = codec.adversarial_step(audio, adversary)
        critic.zero_grad()
        losses["adversary_loss"].backward()  # type: ignore[no-untyped-call]
        critic.step()
        if losses["score_real"] > losses["score_made"] + 0.5:
            break
    assert losses["score_real"] > losses["score_made"] + 0.5
    fooled = float(losses["adversarial"].detach())
    painter = torch.optim.AdamW(codec.parameters(), lr=3e-3)
    for _ in range(30):
        losses = codec.adversarial_step(audio, adversary)
        painter.zero_grad()
        losses["adversarial"].backward()  # type: ignore[no-untyped-call]
        painter.step()
        if float(losses["adversarial"].detach()) < fooled - 0.2:
            break
    assert float(losses["adversarial"].detach()) < fooled - 0.2


def test_discriminators_judge_a_stretch_at_a_random_place(audio: WaveBatch) -> None:
    options = AdversaryOptions(wave_scales=(), stft_windows=(64,), stft_channels=2, stretch=640)
    adversary = CodecAdversary(options)
    heard: list[torch.Tensor] = []
    adversary.discriminators[0].register_forward_pre_hook(lambda _, x: heard.append(x[0]))
    for _ in range(6):
        adversary(audio.wave, torch.zeros_like(audio.wave))
    assert {tuple(wave.shape) for wave in heard} == {(2 * len(audio.wave), 640)}
    assert len({float(wave[0, 0]) for wave in heard}) > 1
    assert all(not wave[len(audio.wave) :].any() for wave in heard)


@pytest.mark.parametrize(
    ("figures", "word"),
    [
        ({"codebook_worst": 0.004}, "codebook"),
        ({"codebook_worst": 0.6, "adversary_loss": 0.01}, "recognise"),
        ({"codebook_worst": 0.6, "adversary_loss": 40.0}, "diverged"),
    ],
)
def test_a_collapse_is_noticed(codec: SpectralCodec, figures: dict[str, float], word: str) -> None:
    found = codec.trouble(figures)
    assert found is not None and word in found


@pytest.mark.parametrize("size", [8, 1024])
def test_one_dead_level_among_many_is_noticed(size: int) -> None:
    quantizer = ResidualQuantizer(4, size, 3, decay=0.9, revive_below=0.0)
    ids, mask = torch.zeros(1, 4, 5, dtype=torch.long), torch.ones(1, 5)
    assert collapsed({k: float(v) for k, v in quantizer.use(ids, mask).items()}) is None
    quantizer.levels()[2].uses.copy_(torch.eye(size)[0] * size)
    assert collapsed({k: float(v) for k, v in quantizer.use(ids, mask).items()}) is not None


def test_an_even_game_is_not_a_collapse(codec: SpectralCodec) -> None:
    assert codec.trouble({"codebook_worst": 0.3}) is None
    assert codec.trouble({"codebook_worst": 0.3, "adversary_loss": 1.9}) is None


def test_padding_does_not_count(codec: SpectralCodec, audio: WaveBatch) -> None:
    longer = torch.cat([audio.wave, torch.ones(5, 3200)], dim=1)
    padded = codec.training_step(WaveBatch(longer, audio.lengths))
    plain = codec.training_step(audio)
    torch.testing.assert_close(padded["commitment"], plain["commitment"])


def test_evaluation_leaves_the_codebooks_alone(codec: SpectralCodec, audio: WaveBatch) -> None:
    before = {key: value.clone() for key, value in codec.state_dict().items()}
    first, second = (codec.training_step(audio)["loss"] for _ in range(2))
    assert torch.equal(first, second)
    assert all(torch.equal(value, before[key]) for key, value in codec.state_dict().items())


def test_levels_are_dropped_in_training_only() -> None:
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(4, 16, 3, decay=0.9, revive_below=0.0, dropout=1.0)
    x, mask = torch.randn(32, 5, 3), torch.ones(32, 5)
    quantizer.train()(x, mask)
    codes = [book.codes.clone() for book in quantizer.levels()]
    found = quantizer(x, mask)
    parts = torch.stack([book[found.ids[:, q]] for q, book in enumerate(codes)])
    gaps = (parts.cumsum(0) - found.latents).abs().amax(dim=(2, 3))
    assert (gaps.amin(dim=0) < 1e-5).all()
    assert len(set(gaps.argmin(dim=0).tolist())) > 1
    quantizer.eval()
    torch.testing.assert_close(quantizer(x, mask).latents, quantizer.decode(quantizer.encode(x)))


def test_bypassed_rows_keep_their_latents() -> None:
    quantizer = ResidualQuantizer(2, 16, 3, decay=0.9, revive_below=0.0, bypass=1.0).train()
    x, mask = torch.randn(4, 5, 3), torch.ones(4, 5)
    assert torch.equal(quantizer(x, mask).latents, x)
    assert not torch.equal(quantizer.eval()(x, mask).latents, x)


def test_nearly_all_codes_come_into_use_with_batches_smaller_than_the_codebook() -> None:
    torch.manual_seed(0)
    book = Codebook(256, 4, decay=0.98, revive_below=0.1)
    for _ in range(400):
        # Far from where the codes were placed at random, and concentrated.
        x = torch.randn(128, 4) * torch.tensor([0.1, 0.05, 0.02, 0.01]) + 7.0
        book.learn(x, book.nearest(x), torch.tensor([len(x)]))
    x = torch.randn(20_000, 4) * torch.tensor([0.1, 0.05, 0.02, 0.01]) + 7.0
    assert book.nearest(x).unique().numel() > 0.95 * 256
