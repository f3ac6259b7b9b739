"""Test that each check of stage language models passes a good one and catches a broken one."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from time import time as clock
from typing import Any

import pytest
import torch
from pydantic import ConfigDict
from torch import Tensor, nn

from segue.core.errors import GenerationError
from segue.core.interfaces import StageBatch, StageLM, StageLoss, Tokens
from segue.core.options import Decoding, Options, Sampling
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


class TakesAnyOption(TinyLM):
    class Config(TinyOptions):
        model_config = ConfigDict(extra="ignore")

    config_class = Config


class HasLooseOptions(TinyLM):
    class Config(TinyOptions):
        model_config = ConfigDict(frozen=False)

    config_class = Config


class LosesNaN(TinyLM):
    def loss(self, batch: StageBatch) -> StageLoss:
        loss = super().loss(batch)
        return StageLoss(loss.total * torch.nan, loss.per_level)


class LosesTheSum(TinyLM):
    def loss(self, batch: StageBatch) -> StageLoss:
        per_level = self.nll(batch).sum(dim=(0, 2))
        return StageLoss(per_level.mean(), per_level)


class ScoresPadding(TinyLM):
    def score(self, batch: StageBatch) -> Tensor:
        return super().score(batch) - 1e-3


class CountsPadding(TinyLM):
    def loss(self, batch: StageBatch) -> StageLoss:
        per_level = self.nll(batch).mean(dim=(0, 2))
        return StageLoss(per_level.mean(), per_level)


class NormalisesTheBatch(TinyLM):
    def score(self, batch: StageBatch) -> Tensor:
        score = super().score(batch)
        return score * (1 + 0.1 * score.shape[0] * batch.target.mask[:, None])


class SeesTheFuture(TinyLM):
    def hidden(self, ids: Tensor) -> Tensor:
        hidden = super().hidden(ids)
        return hidden + hidden.roll(-1, dims=1)


class SeesItself(TinyLM):
    def hidden(self, ids: Tensor) -> Tensor:
        hidden = super().hidden(ids)
        return hidden + hidden.roll(-1, dims=2)


class IgnoresWhatIsGiven(TinyLM):
    def under(self, given: tuple[Tokens, ...], frames: int) -> Tensor:
        return torch.zeros(())


class HasAnUnusedLayer(TinyLM):
    def __init__(self, config: TinyOptions, stage: StageSpec) -> None:
        super().__init__(config, stage)
        self.unused = nn.Linear(2, 2)


class StaysInEvalMode(TinyLM):
    def score(self, batch: StageBatch) -> Tensor:
        self.eval()
        return super().score(batch)


class DropsOutWhileGenerating(TinyLM):
    def logits(self, given: tuple[Tokens, ...], ids: Tensor) -> Tensor:
        return nn.functional.dropout(super().logits(given, ids), 0.5, self.training)


class GeneratesInferenceTensors(TinyLM):
    def generate(self, *arguments: object) -> Tokens:  # type: ignore[override]
        with torch.inference_mode():
            return super().generate(*arguments)  # type: ignore[arg-type]


class ForgetsAPart(TinyLM):
    def __init__(self, config: TinyOptions, stage: StageSpec) -> None:
        super().__init__(config, stage)
        self.hidden_bias = torch.randn(stage.target.codebook_size)

    def logits(self, given: tuple[Tokens, ...], ids: Tensor) -> Tensor:
        return super().logits(given, ids) + self.hidden_bias


class ScoresInSinglePrecision(TinyLM):
    def score(self, batch: StageBatch) -> Tensor:
        return super().score(batch).float()


class ScoresElsewhere(TinyLM):
    def score(self, batch: StageBatch) -> Tensor:
        return super().score(batch).to("meta")


class AddsAFrame(TinyLM):
    def generate(self, given, prompt, num_frames, sampling, generators):  # type: ignore[no-untyped-def]
        new = super().generate(given, prompt, num_frames, sampling, generators)
        return new.append(new.levels(0, 99)) if num_frames > 1 else new


class DrawsIllegalCodes(TinyLM):
    def generate(self, *arguments):  # type: ignore[no-untyped-def]
        return Tokens.full(super().generate(*arguments).ids + 1)


class WritesToThePrompt(TinyLM):
    def generate(self, given, prompt, *rest):  # type: ignore[no-untyped-def]
        prompt.ids.clamp_(max=0)
        return super().generate(given, prompt, *rest)


class NeedsAPrompt(TinyLM):
    def generate(self, given, prompt, *rest):  # type: ignore[no-untyped-def]
        prompt.ids[:, :, -1]
        return super().generate(given, prompt, *rest)


class DrawsWithOneGenerator(TinyLM):
    def generate(self, given, prompt, num_frames, sampling, generators):  # type: ignore[no-untyped-def]
        shared = [generators[-1]] * len(generators)
        return super().generate(given, prompt, num_frames, sampling, shared)


class DrawsFromTheGlobalState(TinyLM):
    def generate(self, given, prompt, num_frames, sampling, generators):  # type: ignore[no-untyped-def]
        seeds = torch.randint(1 << 30, (len(generators),)).tolist()
        mine = [torch.Generator().manual_seed(seed) for seed in seeds]
        return super().generate(given, prompt, num_frames, sampling, mine)


class ContinuesPadding(TinyLM):
    def generate(self, given, prompt, *rest):  # type: ignore[no-untyped-def]
        new, size = super().generate(given, prompt, *rest), self.stage.target.codebook_size
        last = prompt.ids[:, :, -1:] if prompt.ids.shape[2] else 0
        return Tokens.full((new.ids + last) % size)


class HasAStaleCache(TinyLM):
    def generate(self, given, prompt, *rest):  # type: ignore[no-untyped-def]
        forgotten = Tokens(torch.zeros_like(prompt.ids), prompt.lengths)
        return super().generate(given, forgotten, *rest)


class DrawsTooBoldly(TinyLM):
    def generate(self, given, prompt, num_frames, sampling, generators):  # type: ignore[no-untyped-def]
        bold = sampling.model_copy(update={"temperature": 4 * sampling.temperature})
        return super().generate(given, prompt, num_frames, bold, generators)


class BansACode(TinyLM):
    def logits(self, given: tuple[Tokens, ...], ids: Tensor) -> Tensor:
        logits = super().logits(given, ids)
        return torch.cat([logits[..., :-1], logits[..., -1:] - 1e4], dim=-1)


class StreamsTheLastFrameTwice(TinyLM):
    def stream(
        self,
        given: tuple[Tokens, ...],
        prompt: Tokens,
        num_frames: int,
        sampling: Sampling,
        generators: Sequence[torch.Generator],
    ) -> Iterator[Tokens]:
        new = self.generate(given, prompt, num_frames, sampling, generators)
        yield new
        yield Tokens.full(new.ids[:, :, -1:])


def with_sampling(lm: TinyLM, arguments: Sequence[Any], **changes: object) -> Tokens:
    """Generate with other settings of sampling than was asked for."""
    given, prompt, num_frames, sampling, generators = arguments
    sampling = sampling.model_copy(update=changes)
    return TinyLM.generate(lm, given, prompt, num_frames, sampling, generators)


class IgnoresTemperature(TinyLM):
    def generate(self, *arguments: Any) -> Tokens:
        return with_sampling(self, arguments, temperature=1.0)


class IsAlwaysGreedy(TinyLM):
    def generate(self, *arguments: Any) -> Tokens:
        return with_sampling(self, arguments, temperature=0.0)


class KnowsTwoTemperatures(TinyLM):
    def generate(self, *arguments: Any) -> Tokens:
        return with_sampling(self, arguments, temperature=float(arguments[3].temperature > 0))


class KnowsTopKOfOne(TinyLM):
    def generate(self, *arguments: Any) -> Tokens:
        return with_sampling(self, arguments, top_k=1 if arguments[3].top_k == 1 else None)


class KnowsSmallTopP(TinyLM):
    def generate(self, *arguments: Any) -> Tokens:
        small = (arguments[3].top_p or 1) < 0.01
        return with_sampling(self, arguments, top_p=arguments[3].top_p if small else None)


class ScoresByTheMode(TinyLM):
    def score(self, batch: StageBatch) -> Tensor:
        return super().score(batch) * (0.5 if self.training else 1.0)


class IgnoresTopK(TinyLM):
    def generate(self, *arguments: Any) -> Tokens:
        return with_sampling(self, arguments, top_k=None)


class IgnoresTopP(TinyLM):
    def generate(self, *arguments: Any) -> Tokens:
        return with_sampling(self, arguments, top_p=None)


class IgnoresWhatIsCounted(TinyLM):
    def loss(self, batch: StageBatch) -> StageLoss:
        return super().loss(replace(batch, counted=None))


def shifted(given: tuple[Tokens, ...], frames: int) -> tuple[Tokens, ...]:
    return tuple(Tokens(tokens.ids.roll(frames, 2), tokens.lengths) for tokens in given)


class ShiftsTheGivenSlice(TinyLM):
    """The first frame of what is given stands under the second of the target, the last nowhere."""

    def under(self, given: tuple[Tokens, ...], frames: int) -> Tensor:
        late = tuple(Tokens(g.ids[:, :, :1].expand_as(g.ids), g.lengths) for g in given)
        kept = tuple(
            Tokens(torch.cat([one.ids[:, :, :1], all_.ids[:, :, :-1]], 2), all_.lengths)
            for one, all_ in zip(late, given, strict=True)
        )
        return super().under(kept, frames)


class GeneratesWithAShiftedSlice(TinyLM):
    def generate(self, given: tuple[Tokens, ...], *arguments: Any) -> Tokens:  # type: ignore[override]
        return super().generate(shifted(given, 1), *arguments)


class FailsBeyond64Frames(TinyLM):
    def hidden(self, ids: Tensor) -> Tensor:
        return super().hidden(ids) + torch.zeros(1, 64, 1, 1)[:, : ids.shape[2]]


class SaysUnbounded(TinyLM):
    unbounded = True  # type: ignore[assignment]


class KeepsAllFrames(SaysUnbounded):
    """Streams each frame, with a cache that grows."""

    def stream(self, given: Any, prompt: Tokens, num_frames: int, *rest: Any) -> Iterator[Tokens]:
        cache = []
        for _ in range(num_frames):
            cache.append(torch.zeros(100))
            yield Tokens.full(torch.zeros(1, prompt.num_levels, 1, dtype=torch.long))


class ReadsTheClock(TinyLM):
    def logits(self, given: tuple[Tokens, ...], ids: Tensor) -> Tensor:
        return super().logits(given, ids).roll(int(clock()), -1)


class CountsCalls(TinyLM):
    calls = 0

    def generate(self, *arguments: Any) -> Tokens:
        self.calls += 1
        new = super().generate(*arguments)
        return Tokens.full((new.ids + self.calls // 3) % self.stage.target.codebook_size)


class ReseedsTorch(TinyLM):
    def generate(self, *arguments: Any) -> Tokens:
        torch.manual_seed(0)
        return super().generate(*arguments)


class SwitchesGradOff(TinyLM):
    def score(self, batch: StageBatch) -> Tensor:
        score = super().score(batch)
        torch.set_grad_enabled(False)
        return score


class AcceptsAll(TinyLM):
    def check_sampling(self, sampling: Sampling) -> None: ...


class IsGuidedToIllegalCodes(AcceptsAll):
    def generate(self, *arguments: Any) -> Tokens:
        new, sampling = super().generate(*arguments), arguments[3]
        return Tokens.full(new.ids + int(sampling.guidance != 1))


class KnowsNoLargerTopK(TinyLM):
    def generate(self, *arguments: Any) -> Tokens:
        torch.empty(self.stage.target.codebook_size)[(arguments[3].top_k or 1) - 1]
        return super().generate(*arguments)


class ForgetsAfter30Frames(TinyLM):
    def generate(self, given: Any, prompt: Tokens, num_frames: int, *rest: Any) -> Tokens:  # type: ignore[override]
        new = super().generate(given, prompt, num_frames, *rest)
        return Tokens.full(new.ids * (torch.arange(num_frames) < 30))


class IsAnotherOnceMoved(TinyLM):
    moved = -1  # not counting the first time

    def decode_with(self, decoding: Decoding) -> None:
        self.moved += 1

    def logits(self, given: tuple[Tokens, ...], ids: Tensor) -> Tensor:
        return super().logits(given, ids).roll(self.moved, -1)


class LearnsWhileItScores(TinyLM):
    def __init__(self, config: TinyOptions, stage: StageSpec) -> None:
        super().__init__(config, stage)
        self.register_buffer("seen", torch.zeros(()))

    def score(self, batch: StageBatch) -> Tensor:
        self.get_buffer("seen").add_(1)
        return super().score(batch)


class TakesShortPromptsOnly(TinyLM):
    def generate(self, given: tuple[Tokens, ...], prompt: Tokens, *rest: Any) -> Tokens:  # type: ignore[override]
        if prompt.ids.shape[2] > 40:
            raise ValueError("the prompt is too long")
        return super().generate(given, prompt, *rest)


class RoundsProducts(TinyLM):
    def score(self, batch: StageBatch) -> Tensor:
        torch.set_float32_matmul_precision("medium")
        return super().score(batch)


class HoldsOnAtCtrlC(TinyLM):
    def score(self, batch: StageBatch) -> Tensor:
        signal.signal(signal.SIGINT, lambda *_: None)
        return super().score(batch)


class EndsTheProcess(TinyLM):
    def score(self, batch: StageBatch) -> Tensor:
        raise SystemExit(3)


class DoublesTheTemperature(TinyLM):
    def generate(self, given, prompt, num_frames, sampling, generators):  # type: ignore[no-untyped-def]
        bold = sampling.model_copy(update={"temperature": 2 * sampling.temperature})
        return super().generate(given, prompt, num_frames, bold, generators)


class FailsBeyond132Frames(TinyLM):
    def logits(self, given: tuple[Tokens, ...], ids: Tensor) -> Tensor:
        assert ids.shape[2] <= 132
        return super().logits(given, ids)


class LearnsFromFewRows(TinyLM):
    def loss(self, batch: StageBatch) -> StageLoss:
        assert len(batch.target.lengths) <= 8
        return super().loss(batch)


class NeedsContiguousIds(TinyLM):
    def logits(self, given: tuple[Tokens, ...], ids: Tensor) -> Tensor:
        return super().logits(given, ids.view(-1).view(ids.shape))


class ContinuesMemory(TinyLM):
    def generate(self, given, prompt, *rest):  # type: ignore[no-untyped-def]
        order = torch.empty(prompt.ids.shape).stride()
        read = Tokens(prompt.ids.as_strided(prompt.ids.shape, order), prompt.lengths)
        return super().generate(given, read, *rest)


class LearnsFromOneSeed(TinyLM):
    def training_step(self, batch: StageBatch) -> dict[str, Tensor]:
        torch.manual_seed(0)
        return super().training_step(batch)


class FillsMasks(TinyLM):
    """Promises of models that draw each token from its score are none of its."""

    autoregressive = False

    def loss(self, batch: StageBatch) -> StageLoss:
        loss = super().loss(batch)
        return StageLoss(loss.total / 2, loss.per_level / 2)


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


class FillsFromTheWidestRow(FillsGaps):
    def fill(self, given, left, num_frames, right, sampling, generators) -> Tokens:  # type: ignore[no-untyped-def]
        new = super().fill(given, left, num_frames, right, sampling, generators)
        return Tokens.full((new.ids + right.ids.shape[2]) % self.stage.target.codebook_size)


class ForgetsTheRight(FillsGaps):
    def fill(self, given, left, num_frames, right, sampling, generators) -> Tokens:  # type: ignore[no-untyped-def]
        return self.generate(given, left, num_frames, sampling, generators)


BROKEN = [
    ("fills_rows_as_if_alone", FillsFromTheWidestRow, "filled in a batch"),
    ("filling_sees_both_sides", ForgetsTheRight, "whatever the right side"),
    ("unknown_options_are_refused", TakesAnyOption, "unknown key"),
    ("options_are_frozen", HasLooseOptions, "can be assigned"),
    ("loss_is_finite", LosesNaN, "NaN"),
    ("score_agrees_with_loss", LosesTheSum, "off by"),
    ("score_is_zero_at_padding", ScoresPadding, "not 0"),
    ("padding_has_no_influence", CountsPadding, "loss with other padding"),
    ("scored_batch_equals_rows", NormalisesTheBatch, "in a batch"),
    ("score_is_a_likelihood", SeesTheFuture, "sum to"),
    ("given_frames_matter", IgnoresWhatIsGiven, "whatever the given slice"),
    ("gradients_reach_every_parameter", HasAnUnusedLayer, "unused.bias, unused.weight"),
    ("generating_restores_the_mode", StaysInEvalMode, "training mode is off"),
    ("generating_restores_the_mode", DropsOutWhileGenerating, "in training mode"),
    ("can_be_trained_after_generating", GeneratesInferenceTensors, "[Ii]nference"),
    ("state_round_trip", ForgetsAPart, "after loading"),
    ("works_in_double_precision", ScoresInSinglePrecision, "float32"),
    ("respects_the_device", ScoresElsewhere, "scores are on meta"),
    ("generates_what_is_asked_for", AddsAFrame, "new frames instead of"),
    ("generates_what_is_asked_for", DrawsIllegalCodes, "allowed are"),
    ("generates_what_is_asked_for", WritesToThePrompt, "prompt is written to"),
    ("generates_from_nothing", NeedsAPrompt, "IndexError"),
    ("generated_batch_equals_rows", DrawsWithOneGenerator, "in a batch"),
    ("rows_do_not_depend_on_each_other", DrawsWithOneGenerator, "beside another row"),
    ("is_deterministic", DrawsFromTheGlobalState, "second time"),
    ("padding_does_not_change_generation", ContinuesPadding, "other padding"),
    ("greedy_tokens_score_best", HasAStaleCache, "the greedy token"),
    ("draws_follow_the_scores", DrawsTooBoldly, "shares of drawn frames"),
    ("every_code_can_be_drawn", BansACode, "never draws"),
    ("streamed_equals_generated", StreamsTheLastFrameTwice, "tokens of row 0|streamed"),
    ("settings_of_sampling_are_used", IgnoresTemperature, "at temperature 0 with other seeds"),
    ("settings_of_sampling_are_used", IsAlwaysGreedy, "at temperature 10, other seeds"),
    ("settings_of_sampling_are_used", IgnoresTopK, "with {'top_k': 1}"),
    ("settings_of_sampling_are_used", IgnoresTopP, "with {'top_p': 1e-06}"),
    ("settings_between_their_limits_are_used", KnowsTwoTemperatures, "temperature 0.001 draws"),
    ("settings_between_their_limits_are_used", KnowsTopKOfOne, "top_k 3 draws"),
    ("settings_between_their_limits_are_used", KnowsSmallTopP, "top_p 0.3 draws"),
    ("generating_restores_the_mode", ScoresByTheMode, "scored in training mode"),
    ("guidance_is_used", AcceptsAll, "let check_sampling refuse it"),
    ("prompt_guidance_is_used", AcceptsAll, "let check_sampling refuse it"),
    ("counted_frames_alone_count", IgnoresWhatIsCounted, "counted frames against score"),
    ("every_given_frame_matters", ShiftsTheGivenSlice, "the last frame of the given slice"),
    ("greedy_tokens_score_best", GeneratesWithAShiftedSlice, "the greedy token"),
    ("generates_many_frames", FailsBeyond64Frames, "RuntimeError"),
    ("unbounded_is_true", SaysUnbounded, "given slices"),
    ("is_deterministic", ReadsTheClock, "second time"),
    ("is_deterministic", CountsCalls, "third time"),
    ("leaves_the_process_alone", ReseedsTorch, "torch's random state changed"),
    ("leaves_the_process_alone", SwitchesGradOff, "grad mode changed"),
    ("leaves_the_process_alone", RoundsProducts, "precision of matrix products changed"),
    ("leaves_the_process_alone", HoldsOnAtCtrlC, "handler of Ctrl-C changed"),
    ("takes_long_prompts", TakesShortPromptsOnly, "the prompt is too long"),
    ("score_agrees_with_loss", EndsTheProcess, "SystemExit: 3"),
    ("guidance_is_used", IsGuidedToIllegalCodes, "guidance 20.0: ids"),
    ("iterations_are_used", AcceptsAll, "let check_sampling refuse it"),
    ("repeats_are_used", AcceptsAll, "let check_sampling refuse it"),
    ("generates_what_is_asked_for", KnowsNoLargerTopK, "IndexError"),
    ("generates_many_frames", ForgetsAfter30Frames, "of 66 frames"),
    ("is_deterministic", IsAnotherOnceMoved, "second time"),
    ("takes_long_prompts", FailsBeyond132Frames, "AssertionError"),
    ("gradients_reach_every_parameter", LearnsFromFewRows, "AssertionError"),
    ("gradients_reach_every_parameter", LearnsFromOneSeed, "seeds torch"),
    ("padding_has_no_influence", NeedsContiguousIds, "stride"),
    ("padding_does_not_change_generation", ContinuesMemory, "padding and strides"),
    ("leaves_the_process_alone", LearnsWhileItScores, "seen of its state"),
]
CHECKS = {check.name: check for check in checks_for("stage_lm")}


def subject_of(lm: type[TinyLM], stage: str = "second") -> Subject:
    options = getattr(lm, "config_class", TinyOptions)()
    return Subject("stage_lm", lm, options, TINY_STAGES[stage])


@parametrize_with_checks(
    [*(subject_of(TinyLM, name) for name in TINY_STAGES), subject_of(FillsGaps)]
)
def test_a_good_one_passes(subject: Subject, check: Check) -> None:
    check(subject)


@pytest.mark.parametrize(("name", "broken", "problem"), BROKEN)
def test_a_broken_one_is_caught(name: str, broken: type[TinyLM], problem: str) -> None:
    precision, handler = torch.get_float32_matmul_precision(), signal.getsignal(signal.SIGINT)
    try:
        result = run_check(CHECKS[name], subject_of(broken))
    finally:
        torch.set_float32_matmul_precision(precision)
        signal.signal(signal.SIGINT, handler)
    assert result.outcome == "failed"
    assert re.search(problem, result.message), result.message


@pytest.mark.parametrize(
    ("broken", "problem"), [(SaysUnbounded, "too few pieces"), (KeepsAllFrames, "memory grows")]
)
def test_a_false_claim_of_constant_memory_is_caught(broken: type[TinyLM], problem: str) -> None:
    result = run_check(CHECKS["unbounded_is_true"], subject_of(broken, "first"))
    assert problem in result.message


def test_a_doubled_temperature_is_caught() -> None:
    subject = subject_of(DoublesTheTemperature, "first")
    result = run_check(CHECKS["draws_follow_the_scores"], subject)
    assert "shares of drawn frames are off" in result.message


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
    assert run_check(CHECKS[name], subject_of(FillsMasks)).outcome == "skipped"


def test_every_check_can_fail() -> None:
    of_options = {"options_survive_json", "options_import_no_torch"}  # broken with tokenizers
    assert {name for name, *_ in BROKEN} | of_options == set(CHECKS)


def test_large_codebooks_are_checked_token_by_token() -> None:
    stage = StageSpec("large", SliceSpec("acoustic", 0, 3, 99, Fraction(50)))
    check = CHECKS["score_is_a_likelihood"]
    assert run_check(check, Subject("stage_lm", TinyLM, TinyOptions(), stage)).outcome == "passed"
    seer = Subject("stage_lm", SeesItself, TinyOptions(), stage)
    assert "of one token at level" in run_check(check, seer).message
