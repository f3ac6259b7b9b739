"""Discriminators of waves, and the losses of a game against them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from segue.plugins.tokenizers.common.codec import (
    DilatedStftDiscriminator,
    StftDiscriminator,
    Verdict,
    WaveDiscriminator,
    adversarial_hinge,
    adversary_hinge,
    feature_matching,
)


def small() -> list[nn.Module]:
    torch.manual_seed(0)
    return [
        WaveDiscriminator(1, channels=4),
        WaveDiscriminator(4, channels=4),
        StftDiscriminator(256, channels=2),
        DilatedStftDiscriminator(512, channels=4),
    ]


@pytest.mark.parametrize(("index", "samples"), [(0, 1), (1, 37), (2, 1), (2, 2001), (3, 37)])
def test_any_length_is_judged_and_every_weight_learns(index: int, samples: int) -> None:
    discriminator = small()[index]
    wave = torch.randn(2, samples, requires_grad=True)
    verdict = discriminator(wave)
    assert verdict.logits.shape[0] == 2 and verdict.logits.isfinite().all()
    (verdict.logits.square().mean() + verdict.features[0].square().mean()).backward()
    assert wave.grad is not None and wave.grad.any()
    for name, parameter in discriminator.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


@pytest.mark.parametrize("index", range(4))
def test_rows_are_judged_alone(index: int) -> None:
    discriminator, wave = small()[index], torch.randn(3, 1500)
    together = discriminator(wave).logits
    alone = torch.cat([discriminator(row[None]).logits for row in wave])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_the_paper_s_discriminators_have_the_paper_s_shapes() -> None:
    wave = torch.randn(1, 16384)
    verdict = WaveDiscriminator()(wave)
    assert [f.shape[1] for f in verdict.features] == [16, 64, 256, 1024, 1024, 1024]
    assert verdict.logits.shape == (1, 16384 // 256)
    verdict = StftDiscriminator()(wave)
    # 65 frames of 512 bins; time is halved three times, frequency six times.
    assert [tuple(f.shape[1:]) for f in verdict.features] == [
        (32, 65, 512), (64, 65, 256), (128, 33, 128), (128, 33, 64), (256, 17, 32), (256, 17, 16),
        (512, 9, 8),
    ]  # fmt: skip
    assert verdict.logits.shape == (1, 9)


def test_noise_is_told_from_tones() -> None:
    discriminators = nn.ModuleList(small())
    optimizer = torch.optim.Adam(discriminators.parameters(), lr=5e-3)
    time = torch.arange(800) / 16000
    draw = torch.Generator().manual_seed(0)
    for _ in range(20):
        pitches = 200 + 600 * torch.rand(4, 1, generator=draw)
        tones = 0.3 * torch.sin(2 * torch.pi * pitches * time)
        noise = 0.2 * torch.randn(4, 800, generator=draw)
        loss = adversary_hinge(
            [d(tones) for d in discriminators], [d(noise) for d in discriminators]
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 1.0:
            break
    assert loss < 1.0  # 2 is where nothing is told apart


def verdict(logits: list[float], *features: list[float]) -> Verdict:
    return Verdict(torch.tensor([logits]), [torch.tensor([f]) for f in features])


def test_hinge_losses_are_those_of_the_paper() -> None:
    real = [verdict([2.0, 0.5]), verdict([0.0])]
    made = [verdict([-3.0, 0.0]), verdict([1.0])]
    assert adversary_hinge(real, made).item() == pytest.approx(((0.25 + 0.5) + (1 + 2)) / 2)
    assert adversarial_hinge(made).item() == pytest.approx(((4 + 1) / 2 + 0) / 2)


def test_features_are_matched_relative_to_the_real_ones() -> None:
    real = [verdict([0.0], [2.0, -4.0], [0.1, 0.3])]
    made = [verdict([0.0], [2.0, -1.0], [0.1, 0.1])]
    assert feature_matching(real, made).item() == pytest.approx((1.5 / 3 + 0.1 / 0.2) / 2)
    louder = [verdict([0.0], [20.0, -40.0], [0.1, 0.3])]
    far = [verdict([0.0], [20.0, -10.0], [0.1, 0.1])]
    assert feature_matching(louder, far).item() == pytest.approx(0.5)


def test_no_gradient_of_feature_matching_reaches_the_real_maps() -> None:
    real, made = torch.randn(1, 4, requires_grad=True), torch.randn(1, 4, requires_grad=True)
    loss = feature_matching([Verdict(real, [real])], [Verdict(made, [made])])
    loss.backward()
    assert real.grad is None and made.grad is not None and made.grad.any()
