"""Each check of stage language models passes a good one and catches a broken one."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from segue.core.conformance import (
    TINY_STAGES,
    Check,
    Subject,
    checks_for,
    parametrize_with_checks,
    run_check,
)
from segue.core.interfaces import StageBatch, StageLM, StageLoss, Tokens
from segue.core.options import Options, Sampling
from segue.core.sampling import sample
from segue.core.spec import StageSpec


class TinyOptions(Options):
    width: int = 8


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
        self.heads = nn.Parameter(torch.randn(target.num_levels, width, size))

    def under(self, given: tuple[Tokens, ...], frames: int) -> Tensor:
        """[frames, D] what is given under each target frame, for rows without padding."""
        total = torch.zeros(())
        for index, (tokens, spec) in enumerate(zip(given, self.stage.given, strict=True)):
            rate = self.stage.frames_per_target_frame(index)
            at = torch.tensor([int(frame * rate) for frame in range(frames)])
            offsets = spec.codebook_size * torch.arange(spec.num_levels)[:, None]
            embedded = self.given[index](tokens.ids[0][:, at] + offsets)
            total = total + embedded.sum(dim=0)
        return total

    def inputs(self, ids: Tensor) -> Tensor:
        """[Q, N] ids → [N, Q] ids of the tokens before, each level in a range of its own."""
        size, (levels, frames) = self.stage.target.codebook_size, ids.shape
        flat = (ids + size * torch.arange(levels)[:, None]).T.flatten()
        start = torch.tensor([levels * size])
        return torch.cat([start, flat])[: levels * frames].view(frames, levels)

    def logits(self, given: tuple[Tokens, ...], ids: Tensor) -> Tensor:
        """[Q, N, V] for one row."""
        under = self.under(given, ids.shape[1])
        hidden = self.previous(self.inputs(ids)) + (under[:, None] if under.ndim else under)
        return torch.einsum("nqd,qdv->qnv", hidden, self.heads)

    def row_of(self, given: Sequence[Tokens], row: int) -> tuple[Tokens, ...]:
        return tuple(Tokens.full(tokens.row(row)[None]) for tokens in given)

    def nll(self, batch: StageBatch) -> Tensor:
        rows = torch.zeros(batch.target.ids.shape, dtype=self.heads.dtype)
        for row, ids in enumerate(batch.target.rows()):
            logits = self.logits(self.row_of(batch.given, row), ids)
            told = logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
            rows[row, :, : ids.shape[1]] = -told
        return rows

    def loss(self, batch: StageBatch) -> StageLoss:
        per_level = self.nll(batch).sum(dim=(0, 2)) / batch.target.lengths.sum()
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
        rows = []
        for row, ids in enumerate(prompt.rows()):
            mine = self.row_of(given, row)
            rows.append(self.extend(mine, ids, num_frames, sampling, generators[row]))
        return Tokens.full(torch.stack(rows))

    def extend(
        self,
        given: tuple[Tokens, ...],
        ids: Tensor,
        num_frames: int,
        sampling: Sampling,
        generator: torch.Generator,
    ) -> Tensor:
        known = ids.shape[1]
        ids = torch.cat([ids, ids.new_zeros(ids.shape[0], num_frames)], dim=1)
        for frame in range(known, known + num_frames):
            for level in range(ids.shape[0]):
                logits = self.logits(given, ids)[level, frame][None]
                ids[level, frame] = sample(logits, sampling, [generator])[0]
        return ids[:, known:]


class TakesAnyOption(TinyLM):
    class Config(TinyOptions):
        model_config = {"extra": "ignore"}

    config_class = Config


class HasLooseOptions(TinyLM):
    class Config(TinyOptions):
        model_config = {"frozen": False}

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
    def inputs(self, ids: Tensor) -> Tensor:
        before = super().inputs(ids)
        return before.roll(-2, dims=0) if len(before) > 2 else before.roll(-1, dims=0)


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
    def extend(self, given, ids, num_frames, sampling, generator):  # type: ignore[no-untyped-def]
        new = super().extend(given, ids, num_frames, sampling, generator)
        return torch.cat([new, new[:, -1:]], dim=1)


class DrawsIllegalCodes(TinyLM):
    def extend(self, given, ids, num_frames, sampling, generator):  # type: ignore[no-untyped-def]
        return super().extend(given, ids, num_frames, sampling, generator) + 1


class WritesToThePrompt(TinyLM):
    def generate(self, given, prompt, *rest):  # type: ignore[no-untyped-def]
        prompt.ids.clamp_(max=0)
        return super().generate(given, prompt, *rest)


class NeedsAPrompt(TinyLM):
    def extend(self, given, ids, num_frames, sampling, generator):  # type: ignore[no-untyped-def]
        ids[:, -1]
        return super().extend(given, ids, num_frames, sampling, generator)


class DrawsWithOneGenerator(TinyLM):
    def generate(self, given, prompt, num_frames, sampling, generators):  # type: ignore[no-untyped-def]
        shared = [generators[-1]] * len(generators)
        return super().generate(given, prompt, num_frames, sampling, shared)


class DrawsFromTheGlobalState(TinyLM):
    def extend(self, given, ids, num_frames, sampling, generator):  # type: ignore[no-untyped-def]
        seed = int(torch.randint(1 << 30, ()))
        mine = torch.Generator().manual_seed(seed)
        return super().extend(given, ids, num_frames, sampling, mine)


class ContinuesPadding(TinyLM):
    def generate(self, given, prompt, *rest):  # type: ignore[no-untyped-def]
        used = super().generate(given, prompt, *rest)
        last = prompt.ids[:, :, -1:] if prompt.ids.shape[2] else 0
        size = self.stage.target.codebook_size
        return Tokens.full((used.ids + last) % size)


class HasAStaleCache(TinyLM):
    def extend(self, given, ids, num_frames, sampling, generator):  # type: ignore[no-untyped-def]
        forgotten = torch.zeros_like(ids)
        return super().extend(given, forgotten, num_frames, sampling, generator)


class DrawsTooBoldly(TinyLM):
    def extend(self, given, ids, num_frames, sampling, generator):  # type: ignore[no-untyped-def]
        bold = sampling.model_copy(update={"temperature": 4 * sampling.temperature})
        return super().extend(given, ids, num_frames, bold, generator)


class BansACode(TinyLM):
    def logits(self, given: tuple[Tokens, ...], ids: Tensor) -> Tensor:
        logits = super().logits(given, ids)
        return torch.cat([logits[..., :-1], logits[..., -1:] - 1e4], dim=-1)


BROKEN = [
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
]
CHECKS = {check.name: check for check in checks_for("stage_lm")}


def subject_of(lm: type[TinyLM], stage: str = "second") -> Subject:
    options = getattr(lm, "config_class", TinyOptions)()
    return Subject("stage_lm", lm, options, stage=TINY_STAGES[stage])


@parametrize_with_checks([subject_of(TinyLM, name) for name in TINY_STAGES])
def test_a_good_one_passes(subject: Subject, check: Check) -> None:
    check(subject)


@pytest.mark.parametrize(("name", "broken", "problem"), BROKEN)
def test_a_broken_one_is_caught(name: str, broken: type[TinyLM], problem: str) -> None:
    result = run_check(CHECKS[name], subject_of(broken))
    assert result.outcome == "failed"
    assert pytest.importorskip("re").search(problem, result.message), result.message


def test_every_check_can_fail() -> None:
    of_options = {"options_survive_json", "options_import_no_torch"}  # broken with tokenizers
    assert {name for name, *_ in BROKEN} | of_options == set(CHECKS)


def test_large_codebooks_are_checked_token_by_token() -> None:
    large = TINY_STAGES["first"].target.__class__("acoustic", 0, 3, 99, TINY_STAGES["first"].target.frame_rate)
    stage = StageSpec("large", large)
    check = CHECKS["score_is_a_likelihood"]
    assert run_check(check, Subject("stage_lm", TinyLM, TinyOptions(), stage)).outcome == "passed"
    seer = Subject("stage_lm", SeesItself, TinyOptions(), stage)
    assert "of one token at level" in run_check(check, seer).message


class SeesItself(TinyLM):
    def inputs(self, ids: Tensor) -> Tensor:
        return super().inputs(ids).roll(-1, dims=1)
