"""Tiny stage models and ragged batches for the tests beside this file."""

from __future__ import annotations

from fractions import Fraction

import torch

from segue.core.interfaces import StageBatch, StageLM, Tokens
from segue.core.spec import SliceSpec, StageSpec
from segue.plugins.models.delay_transformer.config import DelayTransformerOptions
from segue.plugins.models.delay_transformer.model import DelayTransformer
from segue.plugins.models.flat_transformer.config import FlatTransformerOptions
from segue.plugins.models.flat_transformer.model import FlatTransformer

CODES, UNITS = 7, 11
SIZE = {"width": 32, "depth": 2, "heads": 2}


def acoustic(levels: int, start: int = 0) -> SliceSpec:
    return SliceSpec("acoustic", start, start + levels, CODES, Fraction(50))


def semantic(rate: int = 25) -> SliceSpec:
    return SliceSpec("semantic", 0, 1, UNITS, Fraction(rate))


STAGES = {
    "plain": StageSpec("semantic", semantic()),
    "levels": StageSpec("acoustic", acoustic(3)),
    "slower": StageSpec("coarse", acoustic(3), (semantic(25),)),
    "faster": StageSpec("coarse", acoustic(2), (semantic(100),)),
    "two": StageSpec("fine", acoustic(2, start=3), (semantic(25), acoustic(3))),
}
MODELS = ("flat", "flat_sequence", "delay")


def build(kind: str, stage: StageSpec, dropout: float = 0.0, spread: float = 0.2) -> StageLM:
    """A model whose weights are far from their small initial values, so that all paths count."""
    torch.manual_seed(0)
    model: StageLM
    if kind == "delay":
        model = DelayTransformer(DelayTransformerOptions(**SIZE, dropout=dropout), stage)
    else:
        positions = "sequence" if kind == "flat_sequence" else "time"
        options = FlatTransformerOptions(**SIZE, dropout=dropout, positions=positions)
        model = FlatTransformer(options, stage)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return model


def tokens(spec: SliceSpec, *lengths: int, seed: int = 0) -> Tokens:
    """Random ragged tokens; the padding holds other random codes, which must not matter."""
    generator = torch.Generator().manual_seed(seed + 100 * spec.num_levels + spec.codebook_size)
    shape = (len(lengths), spec.num_levels, max(lengths))
    ids = torch.randint(0, spec.codebook_size, shape, generator=generator)
    return Tokens(ids, torch.tensor(lengths))


def given_for(stage: StageSpec, *frames: int, extra: int = 0) -> tuple[Tokens, ...]:
    """Given slices that cover ``frames`` target frames of each row, and ``extra`` of their own."""
    batches = []
    for index, spec in enumerate(stage.given):
        rate = stage.frames_per_target_frame(index)
        lengths = [-(-count * rate.numerator // rate.denominator) + extra for count in frames]
        batches.append(tokens(spec, *lengths, seed=index + 1))
    return tuple(batches)


def batch_for(stage: StageSpec, *frames: int, extra: int = 0) -> StageBatch:
    return StageBatch(tokens(stage.target, *frames), given_for(stage, *frames, extra=extra))


def alone(batch: Tokens, row: int) -> Tokens:
    """One row as a batch of its own."""
    return Tokens.full(batch.row(row)[None])
