"""A plan says what a training takes; the paper's parts do take a step."""

from __future__ import annotations

import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from segue.apps.cli.main import app
from segue.core.assembly import assemble
from segue.core.config import PipelineConfig
from segue.core.config_files import load_config
from segue.core.errors import ConfigError, TrainingError
from segue.core.interfaces import (
    Adversary,
    Component,
    StageBatch,
    StageLM,
    Tokenizer,
    Tokens,
    WaveBatch,
)
from segue.core.plugins import PluginHost, default_host
from segue.data.epochs import WHOLE, Share
from segue.plugins.tokenizers.spectral_codec.model import SpectralCodec
from segue.training.cost import ROWS, Hardware, training_cost
from segue.training.loop import TrainingRun, train

PARTS = ("semantic_tokenizer", "codec", "stages.semantic", "stages.coarse", "stages.fine")


def random_batch(component: Component, seconds: float, rows: int = 1) -> WaveBatch | StageBatch:
    if isinstance(component, StageLM):
        parts = (component.stage.target, *component.stage.given)
        target, *given = (
            Tokens.full(
                torch.randint(p.codebook_size, (rows, p.num_levels, int(seconds * p.frame_rate)))
            )
            for p in parts
        )
        return StageBatch(target, tuple(given))
    assert isinstance(component, Tokenizer)
    samples = int(seconds * component.spec.sample_rate)
    return WaveBatch(torch.randn(rows, samples) * 0.1, torch.full((rows,), samples))


def built(config: PipelineConfig, host: PluginHost, part: str) -> Component:
    """With weights."""
    assembly = assemble(config, host)
    arguments = [s for s in assembly.stages if f"stages.{s.name}" == part]
    plain = assembly.parts[part]
    component = host.create(plain.kind, plain.use, plain.options, *arguments, place=part)
    assert isinstance(component, Component)
    return component


@pytest.mark.parametrize("domain", ["speech", pytest.param("piano", marks=pytest.mark.slow)])
def test_paper_stages_are_counted_without_memory(domain: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    host = default_host()
    config = load_config(f"{domain}/paper", host).config
    (one,) = training_cost(config, host, "stages.coarse", Hardware(8, "A100"), hours=100)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert one.counted
    assert one.trainable > 190e6
    assert (after - before) * 1024 < 4 * one.parameters  # less than the weights alone
    assert one.flops > 6 * 12 * 12 * 1024**2  # of the layers' matrices; attention comes on top
    assert one.memory["fsdp"]["moments"] == pytest.approx(one.memory["ddp"]["moments"] / 8)
    assert one.activations is not None
    assert one.activations["checkpointed"] < one.activations["kept"] / 4


def learn_from(
    batch: WaveBatch | StageBatch, component: Component, adversary: Adversary | None
) -> None:
    """Forwards and backwards, as the loop does it."""
    if adversary is None:
        component.training_step(batch)["loss"].backward()
        return
    losses = component.adversarial_step(batch, adversary)
    losses["adversary_loss"].backward(retain_graph=True, inputs=list(adversary.parameters()))
    losses["loss"].backward(inputs=[p for p in component.parameters() if p.requires_grad])


SMALL = ("options.width=32", "options.depth=2", "options.heads=2")
SMALL_CODEC = ("options.encoder_depth=1", "options.decoder_depth=1", "options.num_levels=2")
ACOUSTIC, ENCODER = "stages.acoustic", "semantic_tokenizer"
COUNTED: list[Any] = [
    ("speech/baseline", "stages.semantic", SMALL),
    ("speech/baseline", ACOUSTIC, SMALL),
    ("speech/baseline", ACOUSTIC, ("use=depth_transformer.v1", *SMALL)),
    ("speech/baseline", ACOUSTIC, ("use=masked_transformer.v1", *SMALL)),
    ("speech/masked", ACOUSTIC, ("options.blocks=conformer", *SMALL)),
    ("speech/baseline", "codec", SMALL_CODEC),
    pytest.param("speech/paper", "codec", ("options.channels=8",), marks=pytest.mark.slow),
    ("speech/paper", ENCODER, (*SMALL, "options.layer=1", "options.contrastive_depth=1")),
    pytest.param(
        "speech/paper",
        ENCODER,
        (*SMALL, "options.layer=1", "options.objective=best_rq"),
        marks=pytest.mark.slow,
    ),
    pytest.param("speech/textless_tokenizers", ENCODER, (), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("source", "part", "changes"), COUNTED)
def test_counted_arithmetic_is_that_of_a_real_step(
    source: str, part: str, changes: tuple[str, ...]
) -> None:
    """To two in a hundred; masks are drawn alike, codebooks and teachers are at work already."""
    seconds, host = 0.25 if part == "codec" else 1.0, default_host()
    place, crop = (f"{part}.lm", part) if part.startswith("stages.") else (part, f"{part}.training")
    settings = [f"{crop}.crop_seconds={seconds}", *(f"{place}.{change}" for change in changes)]
    config = load_config(source, host, settings).config
    (one,) = training_cost(config, host, part, Hardware())
    component = built(config, host, part).train()
    for buffer in component.buffers():
        if buffer.dtype == torch.bool:
            buffer.fill_(True)
    adversary = component.adversary()
    batch = random_batch(component, seconds, ROWS)
    torch.manual_seed(0)
    # The CPU's own attention is not known to the counter; attention by matrix products is.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        learn_from(batch, component, adversary)
    assert one.counted
    rows = config.parts[part].training.batch_size / ROWS
    assert one.flops * one.per_step / rows == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_a_guided_teacher_counts(tmp_path: Path) -> None:
    """A pass for each of its three rows, and one for what is drawn."""
    host, place = default_host(), f"{ACOUSTIC}.lm"
    settings = [f"{place}.{change}" for change in SMALL]
    settings += [f"{ACOUSTIC}.crop_seconds=2", f"{place}.options.condition_dropout=0.1"]
    plain = load_config("speech/baseline", host, settings).config
    guided = "{guidance: 2, prompt_guidance: 2, prompt_seconds: [0.1, 0.1], drawn: 0}"
    settings += [f"{place}.training.guided={guided}", f"{place}.training.start_from={tmp_path}"]
    config = load_config("speech/baseline", host, settings).config
    (less,) = training_cost(plain, host, ACOUSTIC, Hardware())
    (one,) = training_cost(config, host, ACOUSTIC, Hardware())
    assert one.memory["ddp"]["teacher"] == one.memory["ddp"]["weights"]
    assert less.memory["ddp"]["teacher"] == 0 and "fsdp" not in one.memory
    component, teacher = (built(config, host, ACOUSTIC) for _ in range(2))
    assert isinstance(component, StageLM) and isinstance(teacher, StageLM)
    batch, settings_of = random_batch(component, 2.0, ROWS), config.stages[1].lm.training.guided
    assert isinstance(batch, StageBatch) and settings_of is not None
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        component.guided_loss(batch, teacher.eval(), settings_of).total.backward()
    rows = config.parts[ACOUSTIC].training.batch_size / ROWS
    assert one.flops * one.per_step / rows == pytest.approx(counter.get_total_flops(), rel=0.2)
    drawn = load_config("speech/baseline", host, [*settings, f"{place}.training.guided.drawn=1"])
    (most,) = training_cost(drawn.config, host, ACOUSTIC, Hardware())
    assert most.flops == pytest.approx(one.flops + less.flops / 3)


def test_what_cannot_be_counted_is_estimated_from_how_far_it_went(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A codec whose step looks at its loss: three times the forward pass, not six per weight."""
    host = default_host()
    config = load_config("speech/baseline", host, [f"codec.{each}" for each in SMALL_CODEC]).config
    (whole,) = training_cost(config, host, "codec", Hardware())
    step = SpectralCodec.adversarial_step

    def looking(self: SpectralCodec, *arguments: Any) -> Mapping[str, Tensor]:
        losses = step(self, *arguments)
        assert float(losses["loss"].detach()) > 0
        return losses

    monkeypatch.setattr(SpectralCodec, "adversarial_step", looking)
    (one,) = training_cost(config, host, "codec", Hardware())
    assert whole.counted and not one.counted
    assert one.flops == pytest.approx(whole.flops, rel=0.3)
    assert one.flops > 1.5 * 6 * whole.parameters * 50 and one.activations is None


def test_days_follow_from_rate_and_ranks() -> None:
    host = default_host()
    config = load_config("speech/baseline", host).config
    part = next(name for name in config.parts if name.startswith("stages."))
    (one,) = training_cost(config, host, part, Hardware(1, tflops=10.0, mfu=0.5))
    (four,) = training_cost(config, host, part, Hardware(4, tflops=10.0, mfu=0.5))
    assert one.days == pytest.approx(one.flops * one.in_all / 5e12 / 86400)
    assert four.days == pytest.approx(one.days / 4)


def test_mistakes_are_named() -> None:
    host = default_host()
    config = load_config("speech/baseline", host).config
    with pytest.raises(TrainingError, match=r"stages\.none"):
        training_cost(config, host, "stages.none", Hardware())
    with pytest.raises(ConfigError, match="H100"):
        training_cost(config, host, "stages.semantic", Hardware(gpu="B9000"))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--ranks", "0"),
        ("--mfu", "0"),
        ("--mfu", "1.5"),
        ("--gpu-tflops", "-1"),
        ("--hours-of-audio", "0"),
    ],
)
def test_numbers_out_of_range_are_refused(option: str, value: str) -> None:
    done = CliRunner().invoke(app, ["train", "codec", "--plan", option, value])
    assert done.exit_code == 2 and option in done.output


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_paper_parts_take_a_real_step(part: str, tmp_path: Path) -> None:
    host = default_host()
    config = load_config("speech/paper", host).config
    ref, component = config.parts[part], built(config, host, part)
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
        TrainingRun(
            part,
            config.slots[part].kind,
            ref.use,
            component,
            training,
            tmp_path,
            batches,
            None,
            host,
        )
    )
    changed = [n for n, p in component.named_parameters() if p.detach().sum() != before[n]]
    assert len(changed) > len(before) / 2
    assert all(torch.isfinite(p).all() for p in component.parameters())
