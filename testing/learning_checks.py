"""Promises of every stage language model about its weights: gradients, modes, precision, state."""

from __future__ import annotations

import torch

from segue.core.interfaces import StageLM
from segue.testing.check import require
from segue.testing.compare import (
    any_device,
    require_close,
    require_finite,
    require_legal,
    require_same_tokens,
    through_safetensors,
)
from segue.testing.stage_batches import batch_for, continued, lm_of, prompts_for
from segue.testing.subject import Subject

#: Steps after which a parameter must have seen a gradient: one that is multiplied by a weight
#: that starts as zero sees none in the first.
_STEPS = 4


def check_gradients_reach_every_parameter(subject: Subject) -> None:
    """Each trainable parameter gets a gradient, at least in one of the first steps."""
    lm = subject.create().train()
    assert isinstance(lm, StageLM)
    waiting = {name for name, parameter in lm.named_parameters() if parameter.requires_grad}
    require(bool(waiting), "it has no trainable parameter")
    for _ in range(_STEPS):
        lm.zero_grad()
        lm.training_step(batch_for(subject.stage))["loss"].backward()
        with torch.no_grad():
            for name, parameter in lm.named_parameters():
                if parameter.grad is not None:
                    require_finite(parameter.grad, f"gradient of {name}")
                    if bool(parameter.grad.any()):
                        waiting.discard(name)
                    parameter.sub_(0.01 * parameter.grad)
    require(not waiting, f"no gradient reaches {', '.join(sorted(waiting))}")


def check_generating_restores_the_mode(subject: Subject) -> None:
    """Generating and scoring draw nothing at random but tokens, and leave training mode on."""
    lm, batch = lm_of(subject), prompts_for(subject.stage)
    wanted = continued(lm, batch.given, batch.target)
    lm.train()
    lm.score(batch_for(subject.stage))
    found = continued(lm, batch.given, batch.target)
    off = [name or "the model" for name, part in lm.named_modules() if not part.training]
    require(not off, f"training mode is off afterwards in {', '.join(off)}")
    require_same_tokens(found, wanted, "generated in training mode", subject.mismatches)
    lm.eval()
    continued(lm, batch.given, batch.target)
    require(not lm.training, "training mode is on after generating in eval mode")


def check_can_be_trained_after_generating(subject: Subject) -> None:
    """A model that generated can still be trained on what it generated."""
    lm, batch = lm_of(subject), batch_for(subject.stage)
    prompts = prompts_for(subject.stage, [0])
    new = continued(lm, prompts.given, prompts.target)
    lm.train()
    loss = lm.loss(type(batch)(new, prompts.given)).total
    loss.backward()
    require_finite(loss.detach(), "loss on generated frames")


def check_state_round_trip(subject: Subject) -> None:
    """Saved and loaded into a new instance, it gives the same scores."""
    saved, loaded = lm_of(subject), subject.blank(seed=99)
    assert isinstance(loaded, StageLM)
    loaded.load_state_dict(through_safetensors(saved.state_dict()), strict=True)
    batch = batch_for(subject.stage)
    require_close(loaded.score(batch), saved.score(batch), "scores after loading", subject.atol)


def check_works_in_double_precision(subject: Subject) -> None:
    """In float64 its scores are float64 and agree with those in float32; it generates."""
    lm, batch = lm_of(subject), batch_for(subject.stage)
    single = lm.score(batch)
    lm.to(torch.float64)
    double = lm.score(batch)
    require(double.dtype == torch.float64, f"scores in float64 are {double.dtype}")
    require_close(double, single, "scores in float64", 10 * subject.atol)
    prompts = prompts_for(subject.stage)
    new = continued(lm, prompts.given, prompts.target)
    require_legal(new, subject.stage.target.codebook_size, "tokens generated in float64")


def check_respects_the_device(subject: Subject) -> None:
    """Scores and new frames are on the device of the model; an accelerator is tried."""
    lm, device = lm_of(subject), any_device()
    batch, prompts = batch_for(subject.stage).to(device), prompts_for(subject.stage).to(device)
    lm.to(device)
    found = lm.score(batch), continued(lm, prompts.given, prompts.target).ids
    for tensor, name in zip(found, ("scores", "new frames"), strict=True):
        same = tensor.device.type == device.type
        require(same, f"{name} are on {tensor.device}, the model is on {device}")


CHECKS = (
    check_gradients_reach_every_parameter,
    check_generating_restores_the_mode,
    check_can_be_trained_after_generating,
    check_state_round_trip,
    check_works_in_double_precision,
    check_respects_the_device,
)
