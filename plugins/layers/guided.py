"""A stage model learns to draw by itself what guidance draws: one row instead of two or three.

Guidance distillation (Meng et al., arXiv 2210.03142, section 3.1) for token language models, partly
on what the model itself draws (Agarwal et al., arXiv 2306.13649).

Shape legend: B batch, Q levels, N frames, F frames after the prompt, V codebook size.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from segue.core.interfaces import StageBatch, StageLM, StageLoss, Tokens
from segue.core.options import GuidedConfig, Sampling
from segue.core.sampling import row_generators
from segue.plugins.layers.drawing import LAST_SECONDS
from segue.plugins.layers.stage import given_in_time, heads_of, states

Logits = Float[Tensor, "B Q F V"]


def guided_loss(
    lm: StageLM, batch: StageBatch, teacher: StageLM, guided: GuidedConfig
) -> StageLoss:
    """Return how far the distribution of ``lm`` is from the guided one of ``teacher``, in nats.

    The Kullback-Leibler divergence of each token after a prompt, from the teacher's distribution
    to the model's. The prompt's length is drawn; in eval mode it is the mean one.
    """
    given, target = batch.given, batch.target
    known = _prompt_frames(lm, target, guided)
    if lm.training and torch.rand(()) < guided.drawn:
        target = _drawn(lm, given, target, known, guided)
    given = given_in_time(lm.stage, given, target.lengths)
    counted = target.mask[:, known:]
    with torch.no_grad():
        wanted = _guided(teacher, given, target, known, guided) / guided.temperature
    own = _logits(lm, given, target, known) / guided.temperature
    found = functional.kl_div(
        own.log_softmax(-1), wanted.log_softmax(-1), reduction="none", log_target=True
    )
    per_token = found.sum(-1).masked_fill(~counted[:, None], 0.0)
    per_level = per_token.sum(dim=(0, 2)) / counted.sum().clamp_min(1)
    return StageLoss(per_level.mean(), per_level)


def _prompt_frames(lm: StageLM, target: Tokens, guided: GuidedConfig) -> int:
    """Return a prompt's length, in frames that end with one of every given slice."""
    least, most = (int(s * lm.stage.target.frame_rate) for s in guided.prompt_seconds)
    longest = int(target.lengths.max()) if len(target.lengths) else 0
    drawn = int(torch.randint(least, most + 1, ())) if lm.training else (least + most) // 2
    step = lm.stage.alignment
    return min(drawn, longest // 2) // step * step


def _drawn(
    lm: StageLM, given: tuple[Tokens, ...], target: Tokens, known: int, guided: GuidedConfig
) -> Tokens:
    """Replace what follows the prompt by what the model draws; rows become equally long."""
    frames = int(target.lengths.min()) - known
    if frames <= 0:
        return target
    prompt = Tokens.full(target.ids[:, :, :known])
    seed = int(torch.randint(2**62, ()))
    generators = row_generators(seed, len(target.lengths))
    new = lm.generate(given, prompt, frames, Sampling(temperature=guided.temperature), generators)
    return Tokens.full(torch.cat([prompt.ids, new.ids], dim=2))


def _guided(
    teacher: StageLM, given: tuple[Tokens, ...], target: Tokens, known: int, guided: GuidedConfig
) -> Logits:
    """Return what ``Drawer.guide`` would: logits moved away from those of rows that know less."""
    own = _logits(teacher, given, target, known)
    moved = own
    if guided.guidance != 1.0:
        nothing = tuple(Tokens(tokens.ids, tokens.lengths * 0) for tokens in given)
        moved = moved + (guided.guidance - 1) * (own - _logits(teacher, nothing, target, known))
    if guided.prompt_guidance != 1.0:
        kept = 0 if given else min(known, math.ceil(LAST_SECONDS * teacher.stage.target.frame_rate))
        first = known - kept
        passed = [teacher.stage.given_frames(index, first) for index in range(len(given))]
        after = tuple(_from(tokens, frames) for tokens, frames in zip(given, passed, strict=True))
        less = _logits(teacher, after, _from(target, first), kept)
        moved = moved + (guided.prompt_guidance - 1) * (own - less)
    return moved


def _from(tokens: Tokens, first: int) -> Tokens:
    return Tokens(tokens.ids[:, :, first:], (tokens.lengths - first).clamp_min(0))


def _logits(lm: StageLM, given: tuple[Tokens, ...], target: Tokens, known: int) -> Logits:
    """Return the logits of every token from frame ``known`` on."""
    found = states(lm, given, target)[0][:, known:]
    return heads_of(lm).logits(found).float()
