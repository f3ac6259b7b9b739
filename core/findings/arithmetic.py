"""How much arithmetic a training is, counted on a step."""

from __future__ import annotations

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from segue.core.assembly import plan
from segue.core.config.schema import PipelineConfig
from segue.core.interfaces import StageBatch, StageLM, Tokens
from segue.core.manager import PluginHost
from segue.core.spec import SliceSpec, StageSpec

ROWS = 2  # that are counted on


def training_flops(config: PipelineConfig, host: PluginHost) -> float:
    """Of the whole training of those stages that have no weights, forwards and backwards."""
    total = 0.0
    for stage, spec in zip(config.stages, plan(config, host).stages, strict=True):
        if stage.lm.checkpoint is None:
            place = f"stages.{stage.name}.lm"
            lm = host.create("stage_lm", stage.lm.use, stage.lm.options, spec, place=place)
            assert isinstance(lm, StageLM)
            rows = stage.lm.training.batch_size * stage.lm.training.steps
            total += rows * flops_of_row(lm, stage.crop_seconds)
    return total


def flops_of_row(lm: StageLM, seconds: float) -> float:
    """Of learning from one crop of so many seconds."""
    with torch.random.fork_rng(devices=[]), sdpa_kernel(SDPBackend.MATH):  # the others are unknown
        torch.manual_seed(0)
        batch = _noise(lm.stage, seconds)
        with FlopCounterMode(display=False) as counter:
            lm.train().training_step(batch)["loss"].backward()
    return float(counter.get_total_flops()) / ROWS


def _noise(stage: StageSpec, seconds: float) -> StageBatch:
    slowest = min(part.frame_rate for part in (stage.target, *stage.given))
    frames = max(1, int(seconds * slowest))

    def tokens(part: SliceSpec) -> Tokens:
        length = int(frames * part.frame_rate / slowest)
        return Tokens.full(torch.randint(part.codebook_size, (ROWS, part.num_levels, length)))

    return StageBatch(tokens(stage.target), tuple(tokens(part) for part in stage.given))
