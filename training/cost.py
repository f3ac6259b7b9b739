"""Say what a training will take before it begins: arithmetic, memory, days. Allocates no weights.

Parameters, memory of weights and optimizers, units and days are closed formulas. Arithmetic and
activations are counted on one traced step (``shape_trace``), since no formula knows how a plugin
computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from segue.core.assembly import Assembly, assemble
from segue.core.config import PipelineConfig, TrainingConfig
from segue.core.errors import ConfigError, DataError, TrainingError
from segue.core.interfaces import Component, StageBatch, StageLM, Tokenizer, Tokens, WaveBatch
from segue.core.plugins import PluginHost
from segue.core.spec import SliceSpec
from segue.data.places import exists
from segue.data.sources import load_recordings
from segue.data.store_plan import HEADER
from segue.data.token_store import TokenStore
from segue.training.adaptation import adapt, adapters
from segue.training.learner import hidden_matrices
from segue.training.shape_trace import count_step, weightless
from segue.training.telemetry import PEAK_TFLOPS, flops_per_token

ROWS = 2  # rows of the batch that is traced
GIB = 2**30


@dataclass(frozen=True)
class Hardware:
    """The machine that a training would run on."""

    ranks: int = 1  # number of GPUs
    # A name in ``PEAK_TFLOPS``; None leaves days out unless ``tflops`` is given.
    gpu: str | None = None
    tflops: float | None = None  # peak of one GPU
    mfu: float = 0.4  # share of the peak that is reached

    def flops_per_second(self, precision: str) -> float | None:
        """Return operations per second of all ranks in a number format, if the peak is known.

        Raises:
            ConfigError: if the GPU is unknown.
        """
        peak = self.tflops
        if peak is None and self.gpu is not None:
            if self.gpu not in PEAK_TFLOPS:
                fix = f"use one of {', '.join(PEAK_TFLOPS)}, or give --gpu-tflops"
                raise ConfigError(f"--gpu {self.gpu}", "is unknown", fix)
            half, single = PEAK_TFLOPS[self.gpu]
            peak = single if precision == "32-true" else half
        return None if peak is None else peak * 1e12 * self.mfu * self.ranks


@dataclass(frozen=True)
class PartCost:
    """The cost of training one part.

    A ``unit`` is a token of the target (stages) or a second of audio. ``flops`` are operations per
    unit, forwards and backwards; unless they were ``counted`` on a whole step, three times the
    forward pass as far as it ran, or 6 per weight and frame if that is more. ``per_step``,
    ``in_all`` and ``per_epoch`` are units. ``memory`` is GiB per rank by strategy and purpose,
    ``activations`` GiB per rank, an estimate.
    """

    part: str
    use: str
    unit: str
    parameters: int
    trainable: int
    adversary: int
    flops: float
    counted: bool
    per_step: float
    in_all: float
    per_epoch: float | None
    memory: Mapping[str, Mapping[str, float]]
    activations: Mapping[str, float] | None
    days: float | None


def training_cost(
    config: PipelineConfig,
    host: PluginHost,
    part: str,
    hardware: Hardware,
    hours: float | None = None,
) -> list[PartCost]:
    """Return the cost of one part, or of ``all`` parts that are trained by gradient.

    Args:
        hours: of audio in the data set, for ``per_epoch``.

    Raises:
        TrainingError: if there is no such part, or it is not trained by gradient.
        AssemblyError, ConfigError, PluginError: if a part cannot be built.
    """
    if part != "all" and part not in config.parts:
        known = ", ".join(("all", *config.parts))
        raise TrainingError(part, f"is not a part of {config.name}", f"use one of {known}")
    assembly = assemble(config, host)
    components = {
        name: _build(assembly, host, name) for name in (config.parts if part == "all" else (part,))
    }
    if part != "all" and not components[part].needs_training:
        problem = f"{config.parts[part].use} is not trained by gradient"
        raise TrainingError(part, problem, "plan another part, or all")
    return [
        _cost_of(assembly, name, component, hardware, hours)
        for name, component in components.items()
        if component.needs_training
    ]


def hours_of_data(data: Path | str | None, output: Path | None) -> float | None:
    """Return the hours in the training split, None without data, or raise ``DataError``.

    Args:
        data: recordings, as ``read_recordings`` takes them, or a directory of tokens.
        output: a training directory; its tokens are counted if no data is named.
    """
    tokens = None if output is None else output / "tokens"
    if data is None and tokens is not None and exists(f"{tokens}/{HEADER}"):
        data = tokens
    if data is None:
        return None
    if exists(f"{data}/{HEADER}"):
        store = TokenStore(data, "train")
        return float(store.frames.sum() / store.streams[store.counted_in].frame_rate) / 3600
    seconds = float(load_recordings(data, "train").seconds.clip(0).sum())
    if not seconds:
        raise DataError(str(data), "holds no audio that can be read", "check its files")
    return seconds / 3600


def _build(assembly: Assembly, host: PluginHost, part: str) -> Component:
    plain, ref = assembly.parts[part], assembly.config.parts[part]
    with weightless(), torch.random.fork_rng(devices=[]):
        component = plain.build(host)
        if component.needs_training:
            adapt(component, ref.training, f"{plain.place}.training", ref.checkpoint is not None)
    return component


def _cost_of(
    assembly: Assembly,
    part: str,
    component: Component,
    hardware: Hardware,
    hours: float | None,
) -> PartCost:
    ref = assembly.config.parts[part]
    config, crop, rate = ref.training, ref.training.crop_seconds, 1.0
    speed = hardware.flops_per_second(config.precision)
    if isinstance(component, StageLM):
        crop = next(s.crop_seconds for s in assembly.config.stages if f"stages.{s.name}" == part)
        rate = float(component.stage.target.frame_rate) * component.stage.target.num_levels
    with weightless(), torch.random.fork_rng(devices=[]):
        adversary = component.adversary()
    opposed = 0 if adversary is None else sum(p.numel() for p in adversary.parameters())
    counts = count_step(component, adversary, _batch(component, crop))
    flops = counts.flops / (ROWS * crop * rate)
    if not counts.whole:
        frames = float(component.spec.frame_rate) if isinstance(component, Tokenizer) else 1.0
        flops = max(flops, flops_per_token(component) * frames)
    if (guided := config.guided) is not None:
        # A pass of the teacher for each row that it is guided with, and one to draw from: a third
        # of a step each.
        rows = 1 + (guided.guidance != 1.0) + (guided.prompt_guidance != 1.0)
        flops *= 1 + (rows + guided.drawn) / 3
    activations = None
    if counts.whole:  # half precision takes half of what was counted
        rows = -(-config.batch_size // (hardware.ranks * config.accumulate))
        gib = rows / ROWS / GIB * (1.0 if config.precision == "32-true" else 0.5)
        activations = {"kept": counts.kept * gib, "checkpointed": counts.checkpointed * gib}
    per_step = config.batch_size * crop * rate
    return PartCost(
        part=part,
        use=ref.use,
        unit="token" if isinstance(component, StageLM) else "second",
        parameters=sum(p.numel() for p in component.parameters()),
        trainable=sum(p.numel() for p in component.parameters() if p.requires_grad),
        adversary=opposed,
        flops=flops,
        counted=counts.whole,
        per_step=per_step,
        in_all=per_step * config.steps,
        per_epoch=None if hours is None else hours * 3600 * rate,
        memory=_memory(component, opposed, config, hardware.ranks),
        activations=activations,
        days=None if speed is None else flops * per_step * config.steps / speed / 86400,
    )


def _memory(
    component: Component, opposed: int, config: TrainingConfig, ranks: int
) -> dict[str, dict[str, float]]:
    """Return GiB per rank for each strategy that the part can be trained with."""
    gib = (2 if config.precision == "bf16-true" else 4) / GIB
    every = sum(p.numel() for p in component.parameters()) + opposed
    own = sum(p.numel() for p in component.parameters() if p.requires_grad)
    by_muon = hidden_matrices(component) if config.optimizer == "muon" else []
    plain = {
        "weights": every * gib,
        "gradients": (own + opposed) * gib,
        # AdamW keeps two numbers per weight, Muon one.
        "moments": (2 * (own + opposed) - sum(p.numel() for p in by_muon)) * gib,
        "mean": own * gib if config.ema else 0.0,
        "teacher": every * gib if config.guided is not None else 0.0,
    }
    # DDP copies gradients into buckets; FSDP gathers a block's weights when they are needed.
    memory = {"ddp": {**plain, "buckets": (own + opposed) * gib if ranks > 1 else 0.0}}
    sharded = isinstance(component, StageLM) and not adapters(component)
    if sharded and config.guided is None:
        sizes = [sum(p.numel() for p in block.parameters()) for block in component.blocks()]
        gathered = 2 * max(sizes, default=every) * gib if ranks > 1 else 0.0
        memory["fsdp"] = {k: v / ranks for k, v in plain.items()} | {"buckets": gathered}
    return memory


def _batch(component: Component, crop: float) -> WaveBatch | StageBatch:
    """Return ``ROWS`` crops of so many seconds: audio as a shape, token ids all 0."""
    if not isinstance(component, StageLM):
        assert isinstance(component, Tokenizer)
        samples = round(crop * component.spec.sample_rate)
        return WaveBatch(torch.empty(ROWS, samples, device="meta"), torch.full((ROWS,), samples))
    stage = component.stage
    slowest = min(part.frame_rate for part in (stage.target, *stage.given))
    frames = max(1, int(crop * slowest))

    def tokens(part: SliceSpec) -> Tokens:
        length = int(frames * (part.frame_rate / slowest))
        return Tokens.full(torch.zeros(ROWS, part.num_levels, length, dtype=torch.long))

    return StageBatch(tokens(stage.target), tuple(tokens(part) for part in stage.given))
