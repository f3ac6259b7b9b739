"""A plan says what a training takes; the paper's parts do take a step."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from segue.core.assembly import plan
from segue.core.config.load import load_config
from segue.core.data.share import WHOLE, Share
from segue.core.errors import ConfigError, TrainingError
from segue.core.interfaces import Component, StageBatch, StageLM, Tokenizer, Tokens, WaveBatch
from segue.core.manager import default_host
from segue.core.training.loop import TrainingRun, train
from segue.core.training.planning import Hardware, estimate

PARTS = ("semantic_tokenizer", "codec", "stages.semantic", "stages.coarse", "stages.fine")


def random_batch(component: Component, seconds: float) -> WaveBatch | StageBatch:
    if isinstance(component, StageLM):
        parts = (component.stage.target, *component.stage.given)
        target, *given = (
            Tokens.full(
                torch.randint(p.codebook_size, (1, p.num_levels, int(seconds * p.frame_rate)))
            )
            for p in parts
        )
        return StageBatch(target, tuple(given))
    assert isinstance(component, Tokenizer)
    samples = int(seconds * component.spec.sample_rate)
    return WaveBatch(torch.randn(1, samples) * 0.1, torch.tensor([samples]))


@pytest.mark.parametrize("domain", ["speech", "piano"])
def test_paper_stages_are_counted_without_memory(domain: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    host = default_host()
    config = load_config(f"{domain}/paper", host).config
    (one,) = estimate(config, host, "stages.coarse", Hardware(8, "A100"), hours=100)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert one.counted
    assert one.trainable > 190e6
    assert (after - before) * 1024 < 4 * one.parameters  # less than the weights alone
    assert one.flops > 6 * 12 * 12 * 1024**2  # of the layers' matrices; attention comes on top
    assert one.memory["fsdp"]["moments"] == pytest.approx(one.memory["ddp"]["moments"] / 8)
    assert one.activations is not None
    assert one.activations["checkpointed"] < one.activations["kept"] / 4


def test_counted_arithmetic_is_that_of_a_real_step() -> None:
    host = default_host()
    config = load_config("speech", host).config
    part = next(name for name in config.parts if name.startswith("stages."))
    (one,) = estimate(config, host, part, Hardware())
    assembly = plan(config, host)
    stage = next(s for s in assembly.stages if f"stages.{s.name}" == part)
    plain = assembly.parts[part]
    component = host.create(plain.kind, plain.use, plain.options, stage, place=part)
    assert isinstance(component, StageLM)
    component.train()
    seconds = next(s.crop_seconds for s in config.stages if s.name == stage.name)
    # The CPU's own attention is not known to the counter; attention by matrix products is.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        component.training_step(random_batch(component, seconds))["loss"].backward()
    assert one.counted
    assert one.flops * one.per_step / config.parts[part].training.batch_size == pytest.approx(
        counter.get_total_flops(), rel=0.02
    )


def test_days_follow_from_rate_and_ranks() -> None:
    host = default_host()
    config = load_config("speech", host).config
    part = next(name for name in config.parts if name.startswith("stages."))
    (one,) = estimate(config, host, part, Hardware(1, tflops=10.0, mfu=0.5))
    (four,) = estimate(config, host, part, Hardware(4, tflops=10.0, mfu=0.5))
    assert one.days == pytest.approx(one.flops * one.in_all / 5e12 / 86400)
    assert four.days == pytest.approx(one.days / 4)


def test_mistakes_are_named() -> None:
    host = default_host()
    config = load_config("speech", host).config
    with pytest.raises(TrainingError, match=r"stages\.none"):
        estimate(config, host, "stages.none", Hardware())
    with pytest.raises(ConfigError, match="H100"):
        Hardware(gpu="B9000")
    with pytest.raises(ConfigError, match="ranks"):
        Hardware(ranks=0)
    with pytest.raises(ConfigError, match="hours-of-audio"):
        estimate(config, host, "codec", Hardware(), hours=-1)


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_paper_parts_take_a_real_step(part: str, tmp_path: Path) -> None:
    host = default_host()
    config = load_config("speech/paper", host).config
    assembly = plan(config, host)
    arguments = [s for s in assembly.stages if f"stages.{s.name}" == part]
    plain, ref = assembly.parts[part], config.parts[part]
    component = host.create(plain.kind, plain.use, plain.options, *arguments, place=part)
    assert isinstance(component, Component)
    seconds = 0.4 if part.startswith("stages.") else 1.0
    batch = random_batch(component, seconds)
    training = ref.training.model_copy(
        update={
            "steps": 1,
            "batch_size": 1,
            "warmup_steps": 0,
            "schedule": "constant",
            "crop_seconds": seconds,
        }
    )
    before = {name: p.detach().sum() for name, p in component.named_parameters()}

    def batches(step: int, share: Share = WHOLE) -> WaveBatch | StageBatch:
        return batch

    train(
        TrainingRun(part, plain.kind, ref.use, component, training, tmp_path, batches, None, host)
    )
    changed = [n for n, p in component.named_parameters() if p.detach().sum() != before[n]]
    assert len(changed) > len(before) / 2
    assert all(torch.isfinite(p).all() for p in component.parameters())
