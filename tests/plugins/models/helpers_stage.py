"""Tiny stage models and ragged batches for the tests beside this file."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from pytest import MonkeyPatch

from segue.core.interfaces import StageBatch, Tokens
from segue.core.options import Decoding, Sampling
from segue.core.sampling import row_generators, sample
from segue.core.spec import SliceSpec, StageSpec
from segue.plugins.layers import drawing
from segue.plugins.layers.native.library import available
from segue.plugins.models.delay_transformer import model as delay_model
from segue.plugins.models.delay_transformer.config import DelayTransformerOptions
from segue.plugins.models.delay_transformer.model import DelayTransformer
from segue.plugins.models.depth_transformer.config import DepthTransformerOptions
from segue.plugins.models.depth_transformer.model import DepthTransformer
from segue.plugins.models.flat_transformer.config import FlatTransformerOptions
from segue.plugins.models.flat_transformer.model import FlatTransformer
from segue.testing import Subject, checks_for

CODES, UNITS = 7, 11
CausalLM = FlatTransformer | DelayTransformer | DepthTransformer
SIZE = {"width": 32, "depth": 2, "heads": 2}
RELATIVE = {"position_encoding": "relative", "relative_buckets": 8, "relative_reach": 16}


#: What each variant of a model could do wrong on its own; all other checks of them are slow.
QUICK = {
    "scored_batch_equals_rows", "score_is_zero_at_padding", "score_agrees_with_loss",
    "padding_has_no_influence", "score_is_a_likelihood", "gradients_reach_every_parameter",
    "generated_batch_equals_rows", "greedy_tokens_score_best", "every_code_can_be_drawn",
}  # fmt: skip


def quickly(subjects: list[Subject]) -> pytest.MarkDecorator:
    """Run a test once for each subject and each of the ``QUICK`` checks."""
    checks = [check for check in checks_for("stage_lm") if check.name in QUICK]
    cases = [pytest.param(s, check, id=f"{s}-{check}") for s in subjects for check in checks]
    return pytest.mark.parametrize(("subject", "check"), cases)


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
FAMILIES = {
    "flat": (FlatTransformer, FlatTransformerOptions),
    "delay": (DelayTransformer, DelayTransformerOptions),
    "depth": (DepthTransformer, DepthTransformerOptions),
}
#: What is tried of every family: its name, and the options that make the variant.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "flat": ("flat", {}),
    "flat_sequence": ("flat", {"positions": "sequence"}),
    "flat_relative": ("flat", RELATIVE),
    "flat_runs": ("flat", {"given_repeats": "remove"}),
    "flat_runs_sequence": ("flat", {"given_repeats": "remove", "positions": "sequence"}),
    "delay": ("delay", {}),
    "delay_parallel": ("delay", {"pattern": "parallel"}),
    "delay_flattened": ("delay", RELATIVE | {"pattern": "flattened"}),
    "depth": ("depth", {}),
    "depth_relative": ("depth", RELATIVE),
}


def build(
    kind: str, stage: StageSpec, dropout: float = 0.0, spread: float = 0.2, **options: Any
) -> CausalLM:
    """A model whose weights are far from their small initial values, so that all paths count."""
    torch.manual_seed(0)
    family, variant = MODELS[kind]
    model, config = FAMILIES[family]
    built: CausalLM = model(config(**SIZE, dropout=dropout, **(variant | options)), stage)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return built


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


def repeated(given: tuple[Tokens, ...], count: int) -> tuple[Tokens, ...]:
    """Each batch of one row ``count`` times."""
    return tuple(Tokens(g.ids.repeat(count, 1, 1), g.lengths.repeat(count)) for g in given)


def decoding(backend: str) -> Decoding:
    if backend == "native" and not available():
        pytest.skip("there is no C compiler")
    return Decoding.model_validate({"backend": backend})


def recorded(
    model: CausalLM,
    given: tuple[Tokens, ...],
    prompt: Tokens,
    frames: int,
    patch: MonkeyPatch,
) -> tuple[Tokens, torch.Tensor]:
    """Generated tokens and the log-likelihood of each under the logits it was drawn from."""
    seen: list[torch.Tensor] = []  # [B] or [B, q] by draw

    def spy(logits, sampling, generators):  # type: ignore[no-untyped-def]
        drawn = sample(logits, sampling, generators)
        seen.append(logits.log_softmax(-1).gather(-1, drawn[:, None])[:, 0])
        return drawn

    patch.setattr(drawing, "sample", spy)
    patch.setattr(delay_model, "native_frames", lambda *_: None)  # it draws in C
    batch, levels = prompt.ids.shape[:2]
    new = model.generate(given, prompt, frames, Sampling(), row_generators(3, batch))
    scores = torch.zeros(batch, levels, frames)
    if isinstance(model, DelayTransformer):
        steps = [model.pattern.drawn_in(s, frames) for s in range(model.pattern.num_steps(frames))]
        for places, values in zip(filter(None, steps), seen, strict=True):
            for column, (level, frame) in enumerate(places):
                scores[:, level, frame] = values.view(batch, -1)[:, column]
    else:
        scores = torch.stack(seen, 1).view(batch, frames, levels).transpose(1, 2)
    return new, scores
