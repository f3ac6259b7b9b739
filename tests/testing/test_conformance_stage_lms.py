"""Test that each check of stage language models passes a good one and catches a broken one."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from time import time as clock
from typing import Any

import pytest
import torch
from pydantic import ConfigDict
from tests.broken import after, assert_caught, broken
from torch import Tensor, nn

from segue.core.errors import GenerationError
from segue.core.interfaces import StageBatch, StageLM, StageLoss, Tokens
from segue.core.options import Options, Sampling
from segue.core.sampling import sample
from segue.core.spec import SliceSpec, StageSpec
from segue.core.two_sided import TwoSided
from segue.testing import (
    TINY_STAGES,
    Check,
    Subject,
    checks_for,
    parametrize_with_checks,
    run_check,
)


class TinyOptions(Options):
    width: int = 8


# Where the options' module must be importable without torch, this one, a test, is no example.
TinyOptions.__module__ = "__main__"


class TinyLM(StageLM):
    """Each token from the one before it and the given frames under it; uncached."""

    def __init__(self, config: TinyOptions, stage: StageSpec) -> None:
        super().__init__(config, stage)
        target, width = stage.target, config.width
        size = target.codebook_size
        self.previous = nn.Embedding(target.num_levels * size + 1, width)
        self.given = nn.ModuleList(
            nn.Embedding(g.num_levels * g.codebook_size, width) for g in stage.given
        )
        self.heads = nn.Parameter(torch.randn(target.num_levels, width, size) / 4)

    def under(self, given: tuple[Tokens, ...], frames: int) -> Tensor:
        """[B, N, 1, D] what is given under each target frame."""
        total = torch.zeros(())
        for index, (tokens, spec) in enumerate(zip(given, self.stage.given, strict=True)):
            rate = self.stage.frames_per_target_frame(index)
            at = torch.tensor([int(frame * rate) for frame in range(frames)])
            at = at.clamp_max(tokens.ids.shape[2] - 1)
            offsets = spec.codebook_size * torch.arange(spec.num_levels)[:, None]
            embedded = self.given[index](tokens.ids[:, :, at] + offsets)
            total = total + embedded.sum(dim=1)[:, :, None]
        return total

    def inputs(self, ids: Tensor) -> Tensor:
        """[B, Q, N] ids → [B, N, Q] ids of the tokens before, a range of ids for each level."""
        size, (batch, levels, frames) = self.stage.target.codebook_size, ids.shape
        flat = (ids + size * torch.arange(levels)[:, None]).transpose(1, 2).flatten(1)
        start = torch.full((batch, 1), levels * size)
        return torch.cat([start, flat], dim=1)[:, :-1].view(batch, frames, levels)

    def hidden(self, ids: Tensor) -> Tensor:
        """[B, N, Q, D] what the tokens before each token say."""
        hidden: Tensor = self.previous(self.inputs(ids))
        return hidden

    def logits(self, given: tuple[Tokens, ...], ids: Tensor) -> Tensor:
        """[B, Q, N, V]."""
        hidden = self.hidden(ids) + self.under(given, ids.shape[2])
        return torch.einsum("bnqd,qdv->bqnv", hidden, self.heads)

    def nll(self, batch: StageBatch) -> Tensor:
        ids = batch.target.ids
        told = self.logits(batch.given, ids).log_softmax(-1).gather(-1, ids[..., None])[..., 0]
        return -told.masked_fill(~batch.target.mask[:, None], 0.0)

    def loss(self, batch: StageBatch) -> StageLoss:
        mask = batch.target.mask if batch.counted is None else batch.target.mask & batch.counted
        per_level = (self.nll(batch) * mask[:, None]).sum(dim=(0, 2)) / mask.sum()
        return StageLoss(per_level.mean(), per_level)

    @torch.no_grad()
    def score(self, batch: StageBatch) -> Tensor:
        return -self.nll(batch)

    @torch.no_grad()
    def generate(
        self,
        given: tuple[Tokens, ...],
        prompt: Tokens,
        num_frames: int,
        sampling: Sampling,
        generators: Sequence[torch.Generator],
    ) -> Tokens:
        rows = torch.arange(len(prompt.lengths))
        ids = torch.cat(
            [prompt.ids, prompt.ids.new_zeros(len(rows), prompt.num_levels, num_frames)], 2
        )
        for step in range(num_frames):
            for level in range(prompt.num_levels):
                at = prompt.lengths + step
                logits = self.logits(given, ids)[rows, level, at]
                ids[rows, level, at] = sample(logits, sampling, generators)
        new = prompt.lengths[:, None] + torch.arange(num_frames)
        return Tokens.full(ids.gather(2, new[:, None].expand(-1, prompt.num_levels, -1)))


def redrawn(change: Callable[[Tensor, Sequence[Any]], Tensor], **more: Any) -> type[Any]:
    """Return a model that generates ``change(ids, arguments)``, modulo the codebook's size."""

    def generate(right: Any, self: Any, *arguments: Any) -> Tokens:
        ids = change(right(*arguments).ids, arguments)
        return Tokens.full(ids % self.stage.target.codebook_size)

    return broken(TinyLM, generate=generate, **more)


def sampling(change: Callable[[Sampling], dict[str, Any]]) -> type[Any]:
    """Return a model that draws with other settings of sampling than was asked for."""

    def generate(right: Any, self: Any, *arguments: Any) -> Tokens:
        given, prompt, frames, asked, generators = arguments
        return right(given, prompt, frames, asked.model_copy(update=change(asked)), generators)

    return broken(TinyLM, generate=generate)


def generators(change: Callable[[Sequence[Any]], Sequence[Any]]) -> type[Any]:
    """Return a model that draws with other generators."""
    return broken(TinyLM, generate=lambda right, self, *rest: right(*rest[:-1], change(rest[-1])))


def prompted(change: Callable[[Tokens], Tokens]) -> type[Any]:
    """Return a model that continues another prompt."""
    return broken(
        TinyLM,
        generate=lambda right, self, given, prompt, *rest: right(given, change(prompt), *rest),
    )


def scored(change: Callable[[Tensor], Tensor]) -> type[Any]:
    return broken(TinyLM, score=lambda right, self, batch: change(right(batch)))


def with_logits(change: Callable[[Any, Tensor], Tensor], **more: Any) -> type[Any]:
    """Return a model of other logits: ``change(model, logits)``."""
    return broken(TinyLM, logits=lambda right, self, *rest: change(self, right(*rest)), **more)


def with_hidden(change: Callable[[Tensor], Tensor]) -> type[Any]:
    return broken(TinyLM, hidden=lambda right, self, ids: change(right(ids)))


def with_part(build: Callable[[Any], object], **more: Any) -> type[Any]:
    """Return a model that builds one part more."""

    def init(right: Any, self: Any, *arguments: Any) -> None:
        right(*arguments)
        build(self)

    return broken(TinyLM, __init__=init, **more)


def losing(change: Callable[[Tensor, StageLoss], Tensor]) -> type[Any]:
    """Return a model with another loss of each level, ``change(nll, loss)``."""

    def loss(right: Any, self: Any, batch: StageBatch) -> StageLoss:
        per_level = change(self.nll(batch), right(batch))
        return StageLoss(per_level.mean(), per_level)

    return broken(TinyLM, loss=loss)


def in_inference_mode(right: Any, self: Any, *arguments: Any) -> Tokens:
    with torch.inference_mode():
        found: Tokens = right(*arguments)
    return found


def a_frame_more(right: Any, self: Any, given: Any, prompt: Any, frames: int, *rest: Any) -> Tokens:
    new: Tokens = right(given, prompt, frames, *rest)
    return new.append(new.levels(0, 99)) if frames > 1 else new


def own_generators(count: int) -> list[torch.Generator]:
    seeds = torch.randint(1 << 30, (count,)).tolist()
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def last_frame_twice(right: Any, self: Any, *arguments: Any) -> Iterator[Tokens]:
    new = self.generate(*arguments)
    yield new
    yield Tokens.full(new.ids[:, :, -1:])


def late(given: tuple[Tokens, ...]) -> tuple[Tokens, ...]:
    """Put the first frame under the second of the target, and the last nowhere."""
    ids = [torch.cat([one.ids[:, :, :1], one.ids[:, :, :-1]], 2) for one in given]
    return tuple(Tokens(i, one.lengths) for i, one in zip(ids, given, strict=True))


def shifted(given: tuple[Tokens, ...]) -> tuple[Tokens, ...]:
    return tuple(Tokens(tokens.ids.roll(1, 2), tokens.lengths) for tokens in given)


def all_frames(right: Any, self: Any, given: Any, prompt: Tokens, frames: int, *rest: Any) -> Any:
    """Stream each frame, with a cache that grows."""
    cache = []
    for _ in range(frames):
        cache.append(torch.zeros(100))
        yield Tokens.full(torch.zeros(1, prompt.num_levels, 1, dtype=torch.long))


def counting(self: Any, *_: object) -> None:
    self.calls += 1


def at_most(rows: int, found: int) -> None:
    assert found <= rows


def packed(prompt: Tokens) -> Tokens:
    """Read memory in order, whatever the strides."""
    order = torch.empty(prompt.ids.shape).stride()
    return Tokens(prompt.ids.as_strided(prompt.ids.shape, order), prompt.lengths)


def refuse_long(self: Any, given: Any, prompt: Tokens, *rest: Any) -> None:
    if prompt.ids.shape[2] > 40:
        raise ValueError("the prompt is too long")


def end_the_process(self: Any, batch: StageBatch) -> None:
    raise SystemExit(3)


class Unlucky(TinyLM):
    """Takes any setting of sampling, and uses none of the less usual ones."""

    def check_sampling(self, sampling: Sampling) -> None: ...


class FillsGaps(TinyLM, TwoSided):
    """Draws the gap from the left, shifted by the first code of the right side."""

    def fill(
        self,
        given: tuple[Tokens, ...],
        left: Tokens,
        num_frames: int,
        right: Tokens,
        sampling: Sampling,
        generators: Sequence[torch.Generator],
    ) -> Tokens:
        new = self.generate(given, left, num_frames, sampling, generators)
        shifts = [row[0, 0] if row.numel() else row.new_zeros(()) for row in right.rows()]
        ids = new.ids + torch.stack(shifts)[:, None, None]
        return Tokens.full(ids % self.stage.target.codebook_size)


FILLS_MASKS = broken(
    TinyLM,
    autoregressive=False,  # promises of models that draw each token from its score are none of its
    loss=lambda right, self, batch: StageLoss(right(batch).total / 2, right(batch).per_level / 2),
)
UNBOUNDED = broken(TinyLM, unbounded=True)
#: Check, what it says, and what it says it of.
BROKEN: list[tuple[str, str, type[Any]]] = [
    ("fills_rows_as_if_alone", "filled in a batch",
     broken(FillsGaps, fill=lambda right, self, given, left, frames, wide, *rest: Tokens.full(
         (right(given, left, frames, wide, *rest).ids + wide.ids.shape[2])
         % self.stage.target.codebook_size))),
    ("filling_sees_both_sides", "whatever the right side",
     broken(FillsGaps, fill=lambda right, self, given, left, frames, _, *rest: self.generate(
         given, left, frames, *rest))),
    ("loss_is_finite", "loss returned Tensor, not StageLoss",
     broken(TinyLM, loss=lambda right, self, batch: right(batch).total)),
    ("generates_what_is_asked_for", "generate returned NoneType, not Tokens",
     broken(TinyLM, generate=lambda right, self, *prompt: None)),
    ("loss_is_finite", "NaN", losing(lambda nll, loss: loss.per_level * torch.nan)),
    ("score_agrees_with_loss", "off by", losing(lambda nll, loss: nll.sum(dim=(0, 2)))),
    ("score_is_zero_at_padding", "not 0", scored(lambda score: score - 1e-3)),
    ("padding_has_no_influence", "loss with other padding",
     losing(lambda nll, loss: nll.mean(dim=(0, 2)))),
    ("scored_batch_equals_rows", "in a batch",
     broken(TinyLM, score=lambda right, self, batch: right(batch) * (
         1 + 0.1 * len(batch.target.lengths) * batch.target.mask[:, None]))),
    ("score_is_a_likelihood", "sum to", with_hidden(lambda hidden: hidden + hidden.roll(-1, 1))),
    ("given_frames_matter", "whatever the given slice",
     broken(TinyLM, under=lambda right, self, given, frames: torch.zeros(()))),
    ("gradients_reach_every_parameter", "unused.bias, unused.weight",
     with_part(lambda lm: setattr(lm, "unused", nn.Linear(2, 2)))),
    ("can_be_trained_in_mixed_precision", "RuntimeError",
     broken(TinyLM, training_step=after(
         lambda *_: torch.complex(x := torch.ones(2, 2) @ torch.eye(2), x)))),
    ("generating_restores_the_mode", "training mode is off",
     broken(TinyLM, score=after(lambda self, batch: self.eval()))),
    ("generating_restores_the_mode", "in training mode",
     with_logits(lambda lm, logits: nn.functional.dropout(logits, 0.5, lm.training))),
    ("can_be_trained_after_generating", "[Ii]nference",
     broken(TinyLM, generate=in_inference_mode)),
    ("state_round_trip", "after loading",
     with_part(lambda lm: setattr(lm, "bias", torch.randn(lm.stage.target.codebook_size)),
               logits=lambda right, self, *rest: right(*rest) + self.bias)),
    ("works_in_double_precision", "float32", scored(lambda score: score.float())),
    ("respects_the_device", "scores are on meta", scored(lambda score: score.to("meta"))),
    ("generates_what_is_asked_for", "new frames instead of",
     broken(TinyLM, generate=a_frame_more)),
    ("generates_what_is_asked_for", "allowed are",
     broken(TinyLM, generate=lambda right, self, *rest: Tokens.full(right(*rest).ids + 1))),
    ("generates_what_is_asked_for", "prompt is written to",
     broken(TinyLM, generate=after(lambda self, given, prompt, *_: prompt.ids.clamp_(max=0)))),
    ("generates_from_nothing", "IndexError",
     broken(TinyLM, generate=after(lambda self, given, prompt, *_: prompt.ids[:, :, -1]))),
    ("generated_batch_equals_rows", "in a batch", generators(lambda own: own[-1:] * len(own))),
    ("rows_do_not_depend_on_each_other", "beside another row",
     generators(lambda own: own[-1:] * len(own))),
    ("is_deterministic", "second time", generators(lambda own: own_generators(len(own)))),
    ("padding_does_not_change_generation", "other padding",
     redrawn(lambda ids, asked: ids + (asked[1].ids[:, :, -1:] if asked[1].ids.numel() else 0))),
    ("greedy_tokens_score_best", "the greedy token",
     prompted(lambda prompt: Tokens(torch.zeros_like(prompt.ids), prompt.lengths))),
    ("draws_follow_the_scores", "shares of drawn frames",
     sampling(lambda asked: {"temperature": 4 * asked.temperature})),
    ("every_code_can_be_drawn", "never draws",
     with_logits(lambda lm, logits: torch.cat([logits[..., :-1], logits[..., -1:] - 1e4], -1))),
    ("streamed_equals_generated", "tokens of row 0|streamed",
     broken(TinyLM, stream=last_frame_twice)),
    ("settings_of_sampling_are_used", "at temperature 0 with other seeds",
     sampling(lambda asked: {"temperature": 1.0})),
    ("settings_of_sampling_are_used", "at temperature 10, other seeds",
     sampling(lambda asked: {"temperature": 0.0})),
    ("settings_of_sampling_are_used", "with {'top_k': 1}", sampling(lambda asked: {"top_k": None})),
    ("settings_of_sampling_are_used", "with {'top_p': 1e-06}",
     sampling(lambda asked: {"top_p": None})),
    ("settings_between_their_limits_are_used", "temperature 0.001 draws",
     sampling(lambda asked: {"temperature": float(asked.temperature > 0)})),
    ("settings_between_their_limits_are_used", "top_k 3 draws",
     sampling(lambda asked: {"top_k": 1 if asked.top_k == 1 else None})),
    ("settings_between_their_limits_are_used", "top_p 0.3 draws",
     sampling(lambda asked: {"top_p": asked.top_p if (asked.top_p or 1) < 0.01 else None})),
    ("generating_restores_the_mode", "scored in training mode",
     broken(TinyLM, score=lambda right, self, batch: right(batch) * (1 + self.training))),
    ("guidance_is_used", "let check_sampling refuse it", Unlucky),
    ("prompt_guidance_is_used", "let check_sampling refuse it", Unlucky),
    ("counted_frames_alone_count", "counted frames against score",
     broken(TinyLM, loss=lambda right, self, batch: right(replace(batch, counted=None)))),
    ("every_given_frame_matters", "the last frame of the given slice",
     broken(TinyLM, under=lambda right, self, given, frames: right(late(given), frames))),
    ("greedy_tokens_score_best", "the greedy token",
     broken(TinyLM, generate=lambda right, self, given, *rest: right(shifted(given), *rest))),
    ("generates_many_frames", "RuntimeError",  # beyond 64
     with_hidden(lambda hidden: hidden + torch.zeros(1, 64, 1, 1)[:, : hidden.shape[1]])),
    ("unbounded_is_true", "given slices", UNBOUNDED),
    ("is_deterministic", "second time",
     with_logits(lambda lm, logits: logits.roll(int(clock()), -1))),
    ("is_deterministic", "third time",
     broken(TinyLM, calls=0, generate=after(counting),
            logits=lambda right, self, *rest: right(*rest).roll(self.calls // 3, -1))),
    ("leaves_the_process_alone", "torch's random state changed",
     broken(TinyLM, generate=after(lambda *_: torch.manual_seed(0)))),
    ("leaves_the_process_alone", "grad mode changed",
     broken(TinyLM, generate=after(lambda *_: torch.set_grad_enabled(False)))),
    ("leaves_the_process_alone", "precision of matrix products changed",
     broken(TinyLM, score=after(lambda *_: torch.set_float32_matmul_precision("medium")))),
    ("leaves_the_process_alone", "handler of Ctrl-C changed",
     broken(TinyLM, score=after(lambda *_: signal.signal(signal.SIGINT, lambda *_: None)))),
    ("takes_long_prompts", "the prompt is too long", broken(TinyLM, generate=after(refuse_long))),
    ("score_agrees_with_loss", "SystemExit: 3", broken(TinyLM, score=after(end_the_process))),
    ("guidance_is_used", "guidance 20.0: ids",
     broken(Unlucky, generate=lambda right, self, *rest: Tokens.full(
         right(*rest).ids + int(rest[3].guidance != 1)))),
    ("iterations_are_used", "let check_sampling refuse it", Unlucky),
    ("repeats_are_used", "let check_sampling refuse it", Unlucky),
    ("generates_what_is_asked_for", "IndexError",  # no top_k above the codebook's size
     broken(TinyLM, generate=after(lambda self, *rest: torch.empty(
         self.stage.target.codebook_size)[(rest[3].top_k or 1) - 1]))),
    ("generates_many_frames", "of 66 frames",
     redrawn(lambda ids, asked: ids * (torch.arange(asked[2]) < 30))),
    ("is_deterministic", "second time",
     with_logits(lambda lm, logits: logits.roll(lm.moved, -1), moved=-1,
                 decode_with=lambda right, self, decoding: setattr(self, "moved", self.moved + 1))),
    ("takes_long_prompts", "AssertionError",
     broken(TinyLM, logits=after(lambda self, given, ids: at_most(132, ids.shape[2])))),
    ("gradients_reach_every_parameter", "AssertionError",
     broken(TinyLM, loss=after(lambda self, batch: at_most(8, len(batch.target.lengths))))),
    ("gradients_reach_every_parameter", "seeds torch",
     broken(TinyLM, training_step=after(lambda *_: torch.manual_seed(0)))),
    ("padding_has_no_influence", "stride",
     broken(TinyLM, logits=after(lambda self, given, ids: ids.view(-1)))),
    ("padding_does_not_change_generation", "padding and strides", prompted(packed)),
    ("leaves_the_process_alone", "seen of its state",
     with_part(lambda lm: lm.register_buffer("seen", torch.zeros(())),
               score=after(lambda self, batch: self.seen.add_(1)))),
]  # fmt: skip


class LooseOptions:
    class Unknown(TinyOptions):
        model_config = ConfigDict(extra="ignore")

    class Unfrozen(TinyOptions):
        model_config = ConfigDict(frozen=False)


BROKEN_OPTIONS = [
    ("unknown_options_are_refused", "unknown key", LooseOptions.Unknown),
    ("options_are_frozen", "can be assigned", LooseOptions.Unfrozen),
]
CHECKS = {check.name: check for check in checks_for("stage_lm")}


def subject_of(
    lm: type[TinyLM], stage: str = "second", options: type[TinyOptions] = TinyOptions
) -> Subject:
    return Subject("stage_lm", lm, options(), TINY_STAGES[stage])


@parametrize_with_checks(
    [*(subject_of(TinyLM, name) for name in TINY_STAGES), subject_of(FillsGaps)]
)
def test_a_good_one_passes(subject: Subject, check: Check) -> None:
    check(subject)


@pytest.mark.parametrize(("name", "problem", "lm"), BROKEN)
def test_a_broken_one_is_caught(name: str, problem: str, lm: type[TinyLM]) -> None:
    precision, handler = torch.get_float32_matmul_precision(), signal.getsignal(signal.SIGINT)
    try:
        assert_caught(CHECKS[name], subject_of(lm), problem)
    finally:
        torch.set_float32_matmul_precision(precision)
        signal.signal(signal.SIGINT, handler)


@pytest.mark.parametrize(("name", "problem", "options"), BROKEN_OPTIONS)
def test_broken_options_are_caught(name: str, problem: str, options: type[TinyOptions]) -> None:
    assert_caught(CHECKS[name], subject_of(TinyLM, options=options), problem)


@pytest.mark.parametrize(
    ("name", "problem", "lm"),
    [
        ("unbounded_is_true", "too few pieces", UNBOUNDED),
        ("unbounded_is_true", "memory grows", broken(UNBOUNDED, stream=all_frames)),
        (
            "draws_follow_the_scores",
            "shares of drawn frames are off",
            sampling(lambda asked: {"temperature": 2 * asked.temperature}),
        ),
    ],
)
def test_a_broken_one_without_given_slices_is_caught(
    name: str, problem: str, lm: type[TinyLM]
) -> None:
    assert_caught(CHECKS[name], subject_of(lm, "first"), problem)


def test_a_model_refuses_by_default_what_it_does_not_implement() -> None:
    lm = subject_of(TinyLM).create()
    lm.check_sampling(Sampling(temperature=0.5, top_k=3))
    for setting in (
        Sampling(guidance=2.0),
        Sampling(prompt_guidance=2.0),
        Sampling(iterations=(4,)),
    ):
        with pytest.raises(GenerationError, match=r"stages\.second\.sampling\."):
            lm.check_sampling(setting)


@pytest.mark.parametrize(
    "name", ["score_agrees_with_loss", "greedy_tokens_score_best", "draws_follow_the_scores"]
)
def test_models_that_fill_masks_are_not_held_to_their_scores(name: str) -> None:
    assert run_check(CHECKS[name], subject_of(FILLS_MASKS)).outcome == "skipped"


def test_every_check_can_fail() -> None:
    of_options = {"options_survive_json", "options_import_no_torch"}  # broken with tokenizers
    assert {name for name, *_ in (*BROKEN, *BROKEN_OPTIONS)} | of_options == set(CHECKS)


def test_large_codebooks_are_checked_token_by_token() -> None:
    stage = StageSpec("large", SliceSpec("acoustic", 0, 3, 99, Fraction(50)))
    check = CHECKS["score_is_a_likelihood"]
    assert run_check(check, Subject("stage_lm", TinyLM, TinyOptions(), stage)).outcome == "passed"
    sees_itself = with_hidden(lambda hidden: hidden + hidden.roll(-1, 2))
    seer = Subject("stage_lm", sees_itself, TinyOptions(), stage)
    assert "of one token at level" in run_check(check, seer).message
