"""Check the promises of every stage language model about loss, likelihood and weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from segue.core.interfaces import StageBatch, StageLM, StageLoss, Tokens
from segue.core.options import Sampling
from segue.core.sampling import row_generators
from segue.testing.check import NotApplicable, made, require, returned
from segue.testing.compare import (
    any_device,
    require_close,
    require_finite,
    require_legal,
    require_same_tokens,
    scrambled,
    seed_kept,
    through_safetensors,
    unchanged,
)
from segue.testing.stage_batches import (
    LENGTHS,
    NEW_FRAMES,
    alternatives,
    batch_for,
    given_for,
    padded_anew,
    prompts_for,
    repeated,
    row_of,
)
from segue.testing.subject import Subject

#: Most sequences that are tried, and most frames of each.
_SEQUENCES, _FRAMES = 4096, 3
#: Steps after which a parameter must have seen a gradient: one that is multiplied by a weight
#: that starts as zero sees none in the first.
_STEPS = 4
_MANY_ROWS = 3 * LENGTHS  # frames
_NO_PARAMETERS = "it has no trainable parameter: it learns in buffers"


def lm_of(subject: Subject) -> StageLM:
    """Return an instance with noise on its weights, in eval mode; require a stage model."""
    return scrambled(made(subject, StageLM))


def autoregressive_lm_of(subject: Subject) -> StageLM:
    """As ``lm_of``; raise ``NotApplicable`` if the model does not draw tokens from its scores."""
    lm = lm_of(subject)
    if not lm.autoregressive:
        raise NotApplicable("the model fills masks in passes, not each token from its score")
    return lm


def continued(
    lm: StageLM,
    batch: StageBatch,
    num_frames: int = NEW_FRAMES,
    temperature: float = 1.0,
    seeds: Sequence[int] | None = None,
    sampling: Sampling | None = None,
) -> Tokens:
    """Return new frames after a batch's target; row i draws with ``seeds[i]``, by default i."""
    rows = batch.target.ids.shape[0]
    generators = [row_generators(seed, 1)[0] for seed in (range(rows) if seeds is None else seeds)]
    settings = sampling or Sampling(temperature=temperature)
    new = lm.generate(batch.given, batch.target, num_frames, settings, generators)
    return returned(new, Tokens, "generate")


def check_loss_is_finite(subject: Subject) -> None:
    """Check that the loss is finite for the whole and for each level of the target."""
    lm, stage = lm_of(subject).train(), subject.stage
    require(lm.stage == stage, f"it keeps the stage {lm.stage}, it was given {stage}")
    batch = batch_for(stage)
    with unchanged(batch=batch):
        loss = returned(lm.loss(batch), StageLoss, "loss")
    shapes = tuple(loss.total.shape), tuple(loss.per_level.shape)
    wanted = ((), (stage.target.num_levels,))
    require(shapes == wanted, f"loss has shapes {shapes} instead of {wanted}")
    require_finite(loss.total, "loss")
    require_finite(loss.per_level, "loss per level")


def check_score_agrees_with_loss(subject: Subject) -> None:
    """Check that the loss is the negated mean score of valid tokens, also for each level."""
    lm, batch = autoregressive_lm_of(subject), batch_for(subject.stage)
    with torch.no_grad():
        score, loss = lm.score(batch), lm.loss(batch)
    per_level = -score.sum(dim=(0, 2)) / batch.target.lengths.sum()
    require_close(loss.per_level, per_level, "loss per level against score", subject.atol)
    require_close(loss.total, per_level.mean(), "loss against score", subject.atol)


@torch.no_grad()
def check_counted_frames_alone_count(subject: Subject) -> None:
    """Check that frames that are not ``counted`` have no part in the loss."""
    lm, batch = lm_of(subject), batch_for(subject.stage)
    counted = torch.arange(max(LENGTHS)).expand(len(LENGTHS), -1) % 2 == 1
    part = StageBatch(batch.target, batch.given, counted=counted)
    torch.manual_seed(7)  # a model may draw masks
    found = lm.loss(part).total
    if lm.autoregressive:
        chosen = (counted & batch.target.mask)[:, None]
        total = -(lm.score(batch) * chosen).sum() / chosen.sum() / batch.target.num_levels
        require_close(found, total, "loss of counted frames against score", subject.atol)
    else:
        torch.manual_seed(7)
        same = torch.equal(found, lm.loss(batch).total)
        require(not same, "the loss is the same whichever frames are counted")


def check_score_is_zero_at_padding(subject: Subject) -> None:
    """Check that scores have the target's shape, are finite, and are 0 at padding."""
    lm, batch = lm_of(subject), batch_for(subject.stage)
    with unchanged(batch=batch):
        score = lm.score(batch)
    shapes = tuple(score.shape), tuple(batch.target.ids.shape)
    require(shapes[0] == shapes[1], f"scores are {shapes[0]}, the target is {shapes[1]}")
    require_finite(score, "scores")
    at_padding = score.masked_select(~batch.target.mask[:, None])
    require(not bool(at_padding.any()), "scores at padding are not 0")


def check_padding_has_no_influence(subject: Subject) -> None:
    """Check that padding, its amount, and strides change neither loss nor scores."""
    lm, batch = lm_of(subject), batch_for(subject.stage)
    other, width = padded_anew(batch, subject.stage), batch.target.ids.shape[2]
    with torch.no_grad():
        score = lm.score(other)[:, :, :width]
        require_close(score, lm.score(batch), "scores with other padding and strides", subject.atol)
        found, wanted = lm.loss(other).total, lm.loss(batch).total
    require_close(found, wanted, "loss with other padding and strides", subject.atol)


def check_scored_batch_equals_rows(subject: Subject) -> None:
    """Check that each row of a ragged batch scores as if alone."""
    lm, batch = lm_of(subject), batch_for(subject.stage)
    together = lm.score(batch)
    for row, length in enumerate(LENGTHS):
        alone = lm.score(row_of(batch, row))[0]
        found = together[row, :, :length]
        require_close(found, alone, f"scores of row {row} in a batch", subject.atol)


def check_score_is_a_likelihood(subject: Subject) -> None:
    """Check that the probabilities of all targets sum to 1: no token depends on a later one.

    This holds for whatever order a model predicts in. Where there are too many sequences to try
    them all, only the probabilities of one token's alternatives are summed: any other token may
    be known to the model, but not the one that it predicts.
    """
    lm, target = lm_of(subject), subject.stage.target
    size, levels, frames = target.codebook_size, target.num_levels, _FRAMES
    while frames and size ** (levels * frames) > _SEQUENCES:
        frames -= 1
    if frames:
        ids = torch.cartesian_prod(*[torch.arange(size)] * (levels * frames))
        rows = Tokens.full(ids.view(-1, levels, frames))
        score = lm.score(StageBatch(rows, repeated(given_for(subject.stage, [frames]), len(ids))))
        what = f"the probabilities of all {len(ids)} targets of {frames} frames"
        _require_distribution(score.sum(dim=(1, 2)), what, subject)
        return
    batch = batch_for(subject.stage, [3])
    for level in range(levels):
        rows = alternatives(batch.target.row(0), level, 1, torch.arange(size))
        score = lm.score(StageBatch(rows, repeated(batch.given, size)))
        what = f"the probabilities of one token at level {level}"
        _require_distribution(score[:, level, 1], what, subject)


def _require_distribution(scores: torch.Tensor, what: str, subject: Subject) -> None:
    total = float(scores.detach().double().exp().sum())
    require(abs(total - 1) <= 10 * subject.atol, f"{what} sum to {total:.4f}")


def check_given_frames_matter(subject: Subject) -> None:
    """Check that scores depend on every given slice."""
    lm, stage = lm_of(subject), subject.stage
    if not stage.given:
        raise NotApplicable("the stage is given nothing")
    batch = batch_for(stage)
    score = lm.score(batch)
    for index, spec in enumerate(stage.given):
        tokens = batch.given[index]
        turned = Tokens((tokens.ids + 1) % spec.codebook_size, tokens.lengths).cut(tokens.lengths)
        given = (*batch.given[:index], turned, *batch.given[index + 1 :])
        same = torch.equal(lm.score(StageBatch(batch.target, given)), score)
        require(not same, f"the scores are the same whatever the given slice {spec} holds")


def check_every_given_frame_matters(subject: Subject) -> None:
    """Check that scores depend on the first and the last frame of every given slice."""
    lm, stage = lm_of(subject), subject.stage
    if not stage.given:
        raise NotApplicable("the stage is given nothing")
    batch = row_of(batch_for(stage), 0)
    score = lm.score(batch)
    for index, spec in enumerate(stage.given):
        for frame, which in ((0, "first"), (-1, "last")):
            ids = batch.given[index].ids.clone()
            ids[:, :, frame] = (ids[:, :, frame] + 1) % spec.codebook_size
            given = (*batch.given[:index], Tokens.full(ids), *batch.given[index + 1 :])
            same = torch.equal(lm.score(StageBatch(batch.target, given)), score)
            require(not same, f"the {which} frame of the given slice {spec} has no influence")


def check_gradients_reach_every_parameter(subject: Subject) -> None:
    """Check that each trainable parameter gets a gradient in one of the first steps, and that
    they leave torch's seed alone."""
    lm = subject.create().train()
    waiting = {name for name, parameter in lm.named_parameters() if parameter.requires_grad}
    if not waiting:
        raise NotApplicable(_NO_PARAMETERS)
    for _ in range(_STEPS):
        lm.zero_grad()
        batch = batch_for(subject.stage, _MANY_ROWS)
        with seed_kept():
            lm.training_step(batch)["loss"].backward()
        with torch.no_grad():
            for name, parameter in lm.named_parameters():
                if parameter.grad is not None:
                    require_finite(parameter.grad, f"gradient of {name}")
                    if bool(parameter.grad.any()):
                        waiting.discard(name)
                    parameter.sub_(0.01 * parameter.grad)
    require(not waiting, f"no gradient reaches {', '.join(sorted(waiting))}")


def check_can_be_trained_in_mixed_precision(subject: Subject) -> None:
    """Check that a step under ``training.precision=bf16-mixed`` and its gradients are finite."""
    lm = subject.create().train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = lm.training_step(batch_for(subject.stage))["loss"]
    require_finite(loss.detach(), "loss in bf16-mixed")
    if not loss.requires_grad:
        raise NotApplicable(_NO_PARAMETERS)
    loss.backward()
    for name, parameter in lm.named_parameters():
        if parameter.grad is not None:
            require_finite(parameter.grad, f"gradient of {name} in bf16-mixed")


def check_generating_restores_the_mode(subject: Subject) -> None:
    """Check that generating and scoring use eval mode, and leave the mode as it was."""
    lm, batch, heard = lm_of(subject), prompts_for(subject.stage), batch_for(subject.stage)
    wanted, scores = continued(lm, batch), lm.score(heard)
    lm.train()
    require_close(lm.score(heard), scores, "scored in training mode", subject.atol)
    found = continued(lm, batch)
    off = [name or "the model" for name, part in lm.named_modules() if not part.training]
    require(not off, f"training mode is off afterwards in {', '.join(off)}")
    require_same_tokens(found, wanted, "generated in training mode", subject.mismatches)
    lm.eval()
    continued(lm, batch)
    require(not lm.training, "training mode is on after generating in eval mode")


def check_can_be_trained_after_generating(subject: Subject) -> None:
    """Check that a model that generated can be trained on what it generated."""
    lm, prompts = lm_of(subject), prompts_for(subject.stage, [0])
    new = continued(lm, prompts)
    loss = lm.train().loss(StageBatch(new, prompts.given)).total
    if any(parameter.requires_grad for parameter in lm.parameters()):
        loss.backward()
    require_finite(loss.detach(), "loss on generated frames")


def check_state_round_trip(subject: Subject) -> None:
    """Check that a saved and loaded instance gives the same scores."""
    saved, loaded = lm_of(subject), subject.blank(seed=99)
    assert isinstance(loaded, StageLM)
    loaded.load_state_dict(through_safetensors(saved.state_dict()), strict=True)
    batch = batch_for(subject.stage)
    require_close(loaded.score(batch), saved.score(batch), "scores after loading", subject.atol)


def check_works_in_double_precision(subject: Subject) -> None:
    """Check that scores in float64 agree with those in float32, and that it generates."""
    lm, batch = lm_of(subject), batch_for(subject.stage)
    if not any(tensor.is_floating_point() for tensor in (*lm.parameters(), *lm.buffers())):
        raise NotApplicable("it holds whole numbers only")
    single = lm.score(batch)
    double = lm.to(torch.float64).score(batch)
    require(double.dtype == torch.float64, f"scores in float64 are {double.dtype}")
    require_close(double, single, "scores in float64", 10 * subject.atol)
    new = continued(lm, prompts_for(subject.stage))
    require_legal(new, subject.stage.target.codebook_size, "tokens generated in float64")


def check_respects_the_device(subject: Subject) -> None:
    """Check that scores and new frames are on the model's device, an accelerator if any."""
    lm, device = lm_of(subject), any_device()
    batch, prompts = batch_for(subject.stage).to(device), prompts_for(subject.stage).to(device)
    lm.to(device)
    for name, tensor in (("scores", lm.score(batch)), ("new frames", continued(lm, prompts).ids)):
        same = tensor.device.type == device.type
        require(same, f"{name} are on {tensor.device}, the model is on {device}")
