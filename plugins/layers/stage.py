"""Likelihood, loss and checks of the stage models, as free functions.

A model that predicts from left to right computes in ``forward(given, target)`` the states that its
``heads`` turn into logits and the odds that the audio ends; the functions here prepare its
arguments and reduce its result.

Shape legend: B batch, Q levels, N frames, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from segue.core.errors import ConfigError, GenerationError
from segue.core.interfaces import Lengths, StageBatch, StageLM, StageLoss, Tokens
from segue.core.options import Decoding, Sampling
from segue.core.spec import StageSpec
from segue.plugins.layers.config import CausalOptions, ConditionOptions, SequenceOptions
from segue.plugins.layers.decoding import chosen_backend
from segue.plugins.layers.heads import LevelHeads

#: The state that predicts each token, anything at padding; and log-odds that the audio ends after
#: a frame, or None if the model does not learn that.
States = tuple[Float[Tensor, "B N Q D"], Float[Tensor, "B N"] | None]


@contextmanager
def evaluating(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Put modules in eval mode for the duration; each returns to its own mode, frozen or not."""
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def given_in_time(
    stage: StageSpec, given: Iterable[Tokens], lengths: Lengths
) -> tuple[Tokens, ...]:
    """Cut given slices to the frames that pass during ``lengths`` target frames.

    Generation sees no later ones, so scoring and training must not either.
    """
    return tuple(
        tokens.cut(stage.given_frames(index, lengths)) for index, tokens in enumerate(given)
    )


def drop_given(given: tuple[Tokens, ...], rate: float) -> tuple[Tokens, ...]:
    """Hide the given slices of a random share of rows, for classifier-free guidance."""
    if not (rate and given):
        return given
    kept = torch.rand(len(given[0].lengths), device=given[0].ids.device) >= rate
    # Ids stay as padding: a batch without any frame would have no columns to embed.
    return tuple(Tokens(tokens.ids, tokens.lengths * kept) for tokens in given)


def make_end_head(config: SequenceOptions, stage: StageSpec, width: int) -> nn.Linear | None:
    """Return the head that predicts from ``[D]`` whether the audio ends, or None if not asked for.

    Raises:
        ConfigError: if the stage has given slices, which say how long the audio is.
    """
    if not config.end_of_audio:
        return None
    if stage.given:
        raise ConfigError(
            f"stages.{stage.name}.lm.options.end_of_audio",
            f"is on, but the stage is given {', '.join(map(str, stage.given))}",
            "turn it on in the first stage only: later ones are as long as what they are given",
        )
    return nn.Linear(width, 1)


def end_odds(head: nn.Linear | None, hidden: Float[Tensor, "B N D"]) -> Float[Tensor, "B N"] | None:
    """Return the log-odds that the audio ends before the frame that each state predicts."""
    return None if head is None else head(hidden)[..., 0]


def check_sampling(lm: StageLM, sampling: Sampling, iterations: bool = False) -> None:
    """Refuse sampling values that a model has no use for.

    Args:
        iterations: whether the model fills masks in several passes.

    Raises:
        GenerationError: naming the value.
    """
    stage, place = lm.stage, f"stages.{lm.stage.name}.sampling"
    if sampling.iterations is not None and not iterations:
        problem = "is for models that fill masks; this one draws each token once"
        raise GenerationError(f"{place}.iterations", problem, "set it to null")
    if sampling.repeats is not None and iterations:
        problem = "is for models that draw frame after frame; this one fills masks"
        raise GenerationError(f"{place}.repeats", problem, "set it to null")
    if sampling.prompt_guidance != 1.0 and iterations:
        problem = "is for models that draw frame after frame; this one fills masks"
        raise GenerationError(f"{place}.prompt_guidance", problem, "set it to 1")
    if sampling.guidance == 1.0:
        return
    place, value = f"{place}.guidance", f"is {sampling.guidance:g}"
    if not stage.given:
        fix = "set it to 1, or use prompt_guidance"
        raise GenerationError(place, f"{value}, but the stage is given nothing", fix)
    if not _condition_dropout(lm):
        raise GenerationError(
            place,
            f"{value}, but the model was trained without condition_dropout",
            "set it to 1, or train with "
            f"--set stages.{stage.name}.lm.options.condition_dropout=0.1",
        )


def decode_with(lm: StageLM, decoding: Decoding) -> None:
    """Choose how a model computes while it generates, if its device can; see ``StageLM``."""
    chosen_backend(decoding, next(lm.parameters()), f"stages.{lm.stage.name}.decoding")
    StageLM.decode_with(lm, decoding)


def has_ring(lm: StageLM) -> bool:
    """Return whether a model continues any length in constant memory; see ``StageLM.unbounded``.

    The keys and values of a sliding window lie in a ring.
    """
    assert isinstance(lm.config, CausalOptions)
    return lm.config.attention_window is not None and not lm.stage.given


def heads_of(lm: StageLM) -> LevelHeads:
    """Return what turns the states of a model that predicts from left to right into logits."""
    return cast(LevelHeads, lm.heads)


def states(lm: StageLM, given: tuple[Tokens, ...], target: Tokens) -> States:
    """Return what ``lm`` computes, whatever stands at padding."""
    ids = target.ids.masked_fill(~target.mask[:, None], 0)
    return lm(given, Tokens(ids, target.lengths))


def _likelihood(
    lm: StageLM, batch: StageBatch, condition_dropout: float
) -> tuple[Float[Tensor, "B Q N"], Float[Tensor, "B N"] | None]:
    """Return the negative log-likelihood of every token, 0 at padding, and the odds of ends."""
    target, mask = batch.target, batch.target.mask[:, None]
    if target.ids.shape[2] == 0:
        return target.ids.float(), None
    given = given_in_time(lm.stage, batch.given, target.lengths)
    hidden, ends = states(lm, drop_given(given, condition_dropout), target)
    return heads_of(lm).nll(hidden, target.ids.masked_fill(~mask, 0)).masked_fill(~mask, 0.0), ends


def _condition_dropout(lm: StageLM) -> float:
    assert isinstance(lm.config, ConditionOptions)
    return lm.config.condition_dropout


def causal_loss(lm: StageLM, batch: StageBatch) -> StageLoss:
    """Return the loss of a model that predicts from left to right; see ``StageLM.loss``."""
    nll, odds = _likelihood(lm, batch, _condition_dropout(lm) if lm.training else 0.0)
    mask = batch.target.mask if batch.counted is None else batch.target.mask & batch.counted
    count = mask.sum().clamp_min(1)
    per_level = nll.masked_fill(~mask[:, None], 0.0).sum(dim=(0, 2)) / count
    total = per_level.mean()
    if odds is not None and batch.ends is not None:
        ends = batch.ends.to(odds.dtype)
        terms = functional.binary_cross_entropy_with_logits(odds, ends, reduction="none")
        total = total + terms.masked_fill(~mask, 0.0).sum() / count
    return StageLoss(total, per_level)


def causal_score(lm: StageLM, batch: StageBatch) -> Float[Tensor, "B Q N"]:
    """Return the scores of a model that predicts from left to right; see ``StageLM.score``."""
    with evaluating(lm.modules()), torch.no_grad():
        return -_likelihood(lm, batch, 0.0)[0]
