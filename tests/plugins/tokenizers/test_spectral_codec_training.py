"""Training of the spectral codec: losses, codebooks, modes."""

from __future__ import annotations

import torch

from segue.core.conformance import ragged_audio
from segue.core.interfaces import WaveBatch
from segue.plugins.tokenizers.spectral_codec.config import SpectralCodecOptions
from segue.plugins.tokenizers.spectral_codec.model import SpectralCodec
from segue.plugins.tokenizers.spectral_codec.quantizer import Codebook, ResidualQuantizer


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
        history.append(float(losses["reconstruction"]))
    assert history[-1] < 0.6 * history[0]
    assert {"mel", "commitment", "use_0", "use_2", "codebook_use"} <= losses.keys()
    assert float(losses["codebook_use"]) > 0.1  # of 32 codes, by 25 frames


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


def test_gradients_pass_straight_through() -> None:
    quantizer = ResidualQuantizer(2, 16, 3, decay=0.9, revive_below=0.0).eval()
    x = torch.randn(2, 5, 3, requires_grad=True)
    quantizer(x, torch.ones(2, 5)).latents.sum().backward()
    assert x.grad is not None and torch.equal(x.grad, torch.ones_like(x))


def test_nearly_all_codes_come_into_use_with_batches_smaller_than_the_codebook() -> None:
    torch.manual_seed(0)
    book = Codebook(256, 4, decay=0.98, revive_below=0.1)
    for _ in range(400):
        # Far from where the codes were placed at random, and concentrated.
        x = torch.randn(128, 4) * torch.tensor([0.1, 0.05, 0.02, 0.01]) + 7.0
        book.learn(x, book.nearest(x))
    x = torch.randn(20_000, 4) * torch.tensor([0.1, 0.05, 0.02, 0.01]) + 7.0
    assert book.nearest(x).unique().numel() > 0.95 * 256
