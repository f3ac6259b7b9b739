"""Check the promises of every stage language model about the frames that it generates."""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence

import torch

from segue.core.errors import SegueError
from segue.core.interfaces import StageBatch, StageLM, Tokens
from segue.core.options import Sampling
from segue.core.sampling import row_generators
from segue.core.two_sided import TwoSided
from segue.testing.check import NotApplicable, require
from segue.testing.compare import (
    a_day_later,
    require_finite,
    require_legal,
    require_same_tokens,
    scrambled,
    unchanged,
    undisturbed,
)
from segue.testing.stage_batches import (
    NEW_FRAMES,
    alternatives,
    batch_for,
    given_for,
    padded_anew,
    prompts_for,
    repeated,
    row_of,
    tokens_for,
)
from segue.testing.stage_lm_checks import autoregressive_lm_of, continued, lm_of
from segue.testing.subject import Subject

_ALTERNATIVES = 32
_DRAWN_CODES = 64  # largest codebook of which every code must be drawn
_GREEDY_FRAMES = 16
_MANY = 66  # frames
_LONG_PROMPT = 520  # frames: 512 is a usual limit
#: The low one shows where likelihoods differ, the high one where random draws do.
_TEMPERATURES = (1.0, 10.0)


def _require_frames(new: Tokens, subject: Subject, rows: int, frames: int, what: str) -> None:
    target = subject.stage.target
    shapes = tuple(new.ids.shape), (rows, target.num_levels, frames)
    require(shapes[0] == shapes[1], f"{what}: {shapes[0]} new frames instead of {shapes[1]}")
    lengths = new.lengths.tolist()
    require(lengths == [frames] * rows, f"{what}: lengths {lengths} instead of {frames} each")
    require_legal(new, target.codebook_size, what)


def _first_row(tokens: Tokens) -> Tokens:
    return Tokens.full(tokens.ids[:1])


def check_generates_what_is_asked_for(subject: Subject) -> None:
    """Check that each ragged prompt is continued by ``num_frames`` frames of legal codes."""
    lm, batch = lm_of(subject), prompts_for(subject.stage)
    rows = len(batch.target.lengths)
    for temperature in (0.0, 1.0, 10.0):
        with unchanged(given=batch.given, prompt=batch.target):
            new = continued(lm, batch, temperature=temperature)
        _require_frames(new, subject, rows, NEW_FRAMES, f"at temperature {temperature:g}")
    _require_frames(continued(lm, batch, num_frames=1), subject, rows, 1, "one frame")
    for sampling in (Sampling(temperature=1e-9), Sampling(top_k=10**9), Sampling(top_p=1e-12)):
        new = continued(lm, batch, sampling=sampling)
        what = f"with {sampling.model_dump(exclude_defaults=True)}"
        _require_frames(new, subject, rows, NEW_FRAMES, what)


def check_generates_from_nothing(subject: Subject) -> None:
    """Check that a prompt without any frame is continued: unconditional generation."""
    lm, stage = lm_of(subject), subject.stage
    prompt = Tokens.empty(2, stage.target.num_levels)
    new = continued(lm, StageBatch(prompt, given_for(stage, [NEW_FRAMES] * 2)))
    _require_frames(new, subject, 2, NEW_FRAMES, "from an empty prompt")


def check_generated_batch_equals_rows(subject: Subject) -> None:
    """Check that each of several ragged prompts is continued as if alone with its generator."""
    lm, batch = lm_of(subject), prompts_for(subject.stage)
    for temperature in _TEMPERATURES:
        together = continued(lm, batch, temperature=temperature)
        for row in range(len(batch.target.lengths)):
            alone = continued(lm, row_of(batch, row), temperature=temperature, seeds=[row])
            found = Tokens.full(together.ids[row : row + 1])
            require_same_tokens(found, alone, f"row {row} in a batch", subject.mismatches)


def check_rows_do_not_depend_on_each_other(subject: Subject) -> None:
    """Check that other prompts and other draws in the rows beside it do not change a row."""
    lm, batch = lm_of(subject), prompts_for(subject.stage, [3, 2])
    other = prompts_for(subject.stage, [3, 2])
    pairs = zip((batch.target, *batch.given), (other.target, *other.given), strict=True)
    target, *given = (Tokens.stack([one.row(0), two.row(1)]) for one, two in pairs)
    mixed = StageBatch(target, tuple(given))
    for temperature in _TEMPERATURES:
        found = continued(lm, mixed, temperature=temperature, seeds=[0, 7])
        wanted = continued(lm, batch, temperature=temperature, seeds=[0, 1])
        rows = _first_row(found), _first_row(wanted)
        require_same_tokens(*rows, "beside another row", subject.mismatches)


def check_is_deterministic(subject: Subject) -> None:
    """Check that seeds alone determine the new frames, whatever the global random state is."""
    lm, batch = lm_of(subject), prompts_for(subject.stage)
    for temperature in _TEMPERATURES:
        first = continued(lm, batch, temperature=temperature)
        torch.manual_seed(123)
        for time in ("second", "third"):
            lm.decode_with(lm.decoding)  # as a pipeline does once more when it is moved
            with a_day_later(lm):
                again = continued(lm, batch, temperature=temperature)
            require_same_tokens(again, first, f"generated a {time} time")


def check_settings_of_sampling_are_used(subject: Subject) -> None:
    """Check that temperature, top-k and top-p change how tokens are drawn."""
    lm, batch = lm_of(subject), prompts_for(subject.stage, [0] * 8)
    other = [100 + row for row in range(8)]
    best = continued(lm, batch, temperature=0.0)
    again = continued(lm, batch, temperature=0.0, seeds=other)
    require_same_tokens(again, best, "at temperature 0 with other seeds", subject.mismatches)
    drawn = (continued(lm, batch, temperature=10.0, seeds=seeds) for seeds in (None, other))
    same = torch.equal(*(new.ids for new in drawn))
    require(not same, "at temperature 10, other seeds draw the same tokens")
    if not lm.autoregressive:
        return
    for setting in (Sampling(top_k=1), Sampling(top_p=1e-6)):
        new = continued(lm, batch, seeds=other, sampling=setting)
        changed = setting.model_dump(exclude_defaults=True)
        what = f"with {changed}, which keeps the best token only"
        if torch.equal(new.ids, best.ids):
            continue
        for row in range(len(other)):  # of several best tokens, any may be drawn
            one = StageBatch(Tokens.full(new.ids[row : row + 1]), row_of(batch, row).given)
            frames, ids = range(NEW_FRAMES), torch.arange(subject.stage.target.codebook_size)
            _require_best(lm, one, frames, ids[:_ALTERNATIVES], subject.atol, f"{what}: row {row}")


def check_settings_between_their_limits_are_used(subject: Subject) -> None:
    """Check that a low temperature, top-k and top-p draw other tokens than a high temperature."""
    lm, target = autoregressive_lm_of(subject), subject.stage.target
    first, given = tokens_for(target, [1]).row(0), given_for(subject.stage, [1])
    each = alternatives(first, 0, 0, torch.arange(target.codebook_size)[:_ALTERNATIVES])
    scores = lm.score(StageBatch(each, repeated(given, len(each.ids))))[:, 0, 0].detach()
    if scores.max() - scores.min() <= subject.atol:
        raise NotApplicable("all tokens score alike: no setting prefers one")
    batch, plain = prompts_for(subject.stage, [0] * 8), Sampling(temperature=10.0)
    free = continued(lm, batch, sampling=plain)
    half = -(-target.codebook_size // 2)
    for name, value in (("temperature", 1e-3), ("top_k", half), ("top_p", 0.3)):
        found = continued(lm, batch, sampling=plain.model_copy(update={name: value}))
        same = torch.equal(found.ids, free.ids)
        require(not same, f"{name} {value:g} draws the tokens that temperature 10 alone draws")


def check_guidance_is_used(subject: Subject) -> None:
    """Check that a model that accepts guidance draws other tokens with it."""
    _require_used(subject, Sampling(temperature=10.0), "guidance", 20.0)


def check_prompt_guidance_is_used(subject: Subject) -> None:
    """Check that a model that accepts guidance by the prompt draws other tokens with it."""
    _require_used(subject, Sampling(temperature=10.0), "prompt_guidance", 20.0)


def check_iterations_are_used(subject: Subject) -> None:
    """Check that a model that accepts iterations draws other tokens with four than with one."""
    once = Sampling(temperature=10.0, iterations=(1,))
    _require_used(subject, once, "iterations", (4,))


def check_repeats_are_used(subject: Subject) -> None:
    """Check that a model that accepts repeats draws other tokens where they would repeat."""
    _require_used(subject, Sampling(temperature=1e-3), "repeats", 1)


def _require_used(subject: Subject, plain: Sampling, name: str, value: object) -> None:
    """Require that a setting, if the model accepts it, changes what is drawn."""
    lm, stage = lm_of(subject), subject.stage
    # Longer than the last second, away from which a prompt guides a stage that is given nothing.
    known = 2 * math.ceil(stage.target.frame_rate) if name == "prompt_guidance" else 0
    known -= known % stage.alignment
    prompt = tokens_for(stage.target, [known] * 8)
    batch = StageBatch(prompt, given_for(stage, [known + _GREEDY_FRAMES] * 8))
    strong = plain.model_copy(update={name: value})
    try:
        lm.check_sampling(strong)
    except SegueError as refusal:
        raise NotApplicable(f"it refuses {name}: {refusal.problem}") from refusal
    without, found = (continued(lm, batch, _GREEDY_FRAMES, sampling=s) for s in (plain, strong))
    what = f"{name} {value}"
    _require_frames(found, subject, 8, _GREEDY_FRAMES, what)
    same = torch.equal(found.ids, without.ids)
    require(not same, f"{what} draws the same tokens; let check_sampling refuse it")


def check_generates_many_frames(subject: Subject) -> None:
    """Check that more frames than any other check uses are generated, the last ones as their
    scores say."""
    lm, stage = lm_of(subject), subject.stage
    nothing = StageBatch(Tokens.empty(1, stage.target.num_levels), given_for(stage, [_MANY]))
    try:
        with torch.inference_mode():  # as pipelines do
            new = continued(lm, nothing, _MANY, temperature=0.0)
    except SegueError as refusal:  # options may set a limit, as gpt2's positions do
        raise NotApplicable(f"it refuses {_MANY} frames: {refusal.problem}") from refusal
    _require_frames(new, subject, 1, _MANY, f"{_MANY} frames")
    if lm.autoregressive:
        ids = torch.arange(stage.target.codebook_size)[:_ALTERNATIVES]
        whole, last = StageBatch(new, nothing.given), range(_MANY - 2, _MANY)
        _require_best(lm, whole, last, ids, subject.atol, f"of {_MANY} frames")


def check_takes_long_prompts(subject: Subject) -> None:
    """Check that many frames are scored, and continued."""
    lm, stage = lm_of(subject), subject.stage
    try:
        with torch.inference_mode():
            after = continued(lm, prompts_for(stage, [_LONG_PROMPT]))
            score = lm.score(batch_for(stage, [_LONG_PROMPT]))
    except SegueError as refusal:
        raise NotApplicable(f"it refuses {_LONG_PROMPT} frames: {refusal.problem}") from refusal
    _require_frames(after, subject, 1, NEW_FRAMES, f"frames after {_LONG_PROMPT}")
    require_finite(score, f"scores of {_LONG_PROMPT} frames")


def check_unbounded_is_true(subject: Subject) -> None:
    """Check that a model that says ``unbounded`` gives frames at once, in constant memory."""
    lm, stage = lm_of(subject), subject.stage
    if not lm.unbounded:
        raise NotApplicable("it works in windows")
    require(not stage.given, "it says unbounded, but the stage is given slices")
    pieces = lm.stream(
        (), Tokens.empty(1, stage.target.num_levels), 4 * _MANY, Sampling(), row_generators(0, 1)
    )
    held, frames = [], 0
    gc.freeze()  # what exists already need not be looked through: it can be much
    try:
        for piece in pieces:
            before, frames = frames, frames + piece.ids.shape[2]
            if before // (2 * _MANY) != frames // (2 * _MANY):  # half of them, and all
                held.append(_held_in_tensors())
    finally:
        gc.unfreeze()
    require(len(held) == 2, f"{4 * _MANY} frames came in too few pieces to be unbounded")
    grown = held[1] - held[0]
    require(grown <= _MANY * 8, f"memory grows by {grown} bytes in {2 * _MANY} frames")


def _held_in_tensors() -> int:
    """Return the bytes of all tensors that the garbage collector watches."""
    gc.collect()
    tensors = [each for each in gc.get_objects() if isinstance(each, torch.Tensor)]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


@torch.no_grad()
def check_leaves_the_process_alone(subject: Subject) -> None:
    """Check that building, scoring and generating change no seed or mode of the process, and
    using no weight."""
    with undisturbed():
        subject.blank()
    lm, batch = lm_of(subject), prompts_for(subject.stage)
    generators = row_generators(0, len(batch.target.lengths))
    scored = batch_for(subject.stage)
    with torch.enable_grad(), undisturbed(lm):
        lm.generate(batch.given, batch.target, NEW_FRAMES, Sampling(), generators)
        lm.score(scored)


def check_padding_does_not_change_generation(subject: Subject) -> None:
    """Check that padding and strides of prompts and given slices do not change the new frames."""
    lm, batch = lm_of(subject), prompts_for(subject.stage)
    batches = padded_anew(batch, subject.stage), batch
    found, wanted = (continued(lm, each, temperature=0.0) for each in batches)
    require_same_tokens(found, wanted, "with other padding and strides", subject.mismatches)


def check_greedy_tokens_score_best(subject: Subject) -> None:
    """Check that no other token scores better than the one generated at temperature 0.

    Generation keeps a cache and scoring does not: this shows that the two are one model.
    """
    lm, stage = autoregressive_lm_of(subject), subject.stage
    size, lengths = stage.target.codebook_size, [2, 0, 3]
    prompt = tokens_for(stage.target, lengths)
    given = given_for(stage, [length + _GREEDY_FRAMES for length in lengths])
    new = continued(lm, StageBatch(prompt, given), _GREEDY_FRAMES, temperature=0.0)
    whole = StageBatch(prompt.append(new), given)
    ids = torch.arange(size) if size <= _ALTERNATIVES else torch.randperm(size)[:_ALTERNATIVES]
    for row, start in enumerate(lengths):
        frames = range(start, start + _GREEDY_FRAMES)
        _require_best(lm, row_of(whole, row), frames, ids, subject.atol, f"row {row}")


def _require_best(
    lm: StageLM, one: StageBatch, frames: range, ids: torch.Tensor, atol: float, what: str
) -> None:
    """Require that no token of these frames scores worse than one of ``ids`` in its place."""
    tokens = one.target.row(0)
    places = [(level, frame) for frame in frames for level in range(len(tokens))]
    tried = [torch.cat([tokens[level, frame][None], ids]) for level, frame in places]
    rows = [alternatives(tokens, *at, each).ids for at, each in zip(places, tried, strict=True)]
    batch = Tokens.full(torch.cat(rows))  # all in one pass
    every = lm.score(StageBatch(batch, repeated(one.given, len(batch.ids)))).detach()
    for (level, frame), each, scores in zip(places, tried, every.split(len(ids) + 1), strict=True):
        score = scores[:, level, frame]
        best = int(score.argmax())
        require(
            bool(score[0] >= score[best] - atol),
            f"{what}, level {level}, frame {frame}: the greedy token {int(each[0])} scores "
            f"{float(score[0]):.4f}, but {int(each[best])} scores {float(score[best]):.4f}",
        )


def check_draws_follow_the_scores(subject: Subject) -> None:
    """Check that first frames occur as often as their scores say, of one level at a low
    temperature too."""
    lm, stage, count = autoregressive_lm_of(subject), subject.stage, 500
    size, levels = stage.target.codebook_size, stage.target.num_levels
    if size**levels > _DRAWN_CODES:
        raise NotApplicable(f"there are {size}^{levels} frames, too many to count draws of each")
    given = given_for(stage, [1])
    frames = torch.cartesian_prod(*[torch.arange(size)] * levels).view(-1, levels, 1)
    score = lm.score(StageBatch(Tokens.full(frames), repeated(given, len(frames))))
    score = score.detach().sum(dim=(1, 2))
    spread = float(score.max() - score.min())  # at a third of it, shares differ, whatever it is
    nothing = StageBatch(Tokens.empty(count, levels), repeated(given, count))
    # A frame's place among all frames: its levels are the digits.
    digits = size ** torch.arange(levels - 1, -1, -1)
    for temperature in (1.0, spread / 3) if levels == 1 and spread > 100 * subject.atol else (1.0,):
        likely = (score / temperature).softmax(dim=0)
        new = continued(lm, nothing, num_frames=1, temperature=temperature)
        places = (new.ids[:, :, 0] * digits).sum(dim=1)
        often = places.bincount(minlength=len(frames)) / count
        gaps = (often - likely).abs()
        # Five standard deviations of each share, and three draws more where a share is small.
        most = 5 * (likely * (1 - likely) / count).sqrt() + 3 / count
        off = f"shares of drawn frames are off by up to {float(gaps.max()):.2f}"
        require(bool((gaps <= most).all()), f"at temperature {temperature:.2g}, {off}")


def check_every_code_can_be_drawn(subject: Subject) -> None:
    """Check that each legal code has a finite score; of a small codebook, each is drawn."""
    lm, stage = lm_of(subject), subject.stage
    size, levels = stage.target.codebook_size, stage.target.num_levels
    ids = torch.arange(size)[:, None, None].expand(size, levels, 1)
    given = repeated(given_for(stage, [1]), size)
    require_finite(lm.score(StageBatch(Tokens.full(ids), given)), "scores of all codes")
    if size > _DRAWN_CODES:
        return
    rows = 8 * size  # times NEW_FRAMES draws of each level
    given = repeated(given_for(stage, [NEW_FRAMES]), rows)
    new = continued(lm, StageBatch(Tokens.empty(rows, levels), given), temperature=10.0)
    for level in range(levels):
        missing = set(range(size)) - set(new.ids[:, level].flatten().tolist())
        require(not missing, f"level {level} never draws {sorted(missing)}")


def check_streamed_equals_generated(subject: Subject) -> None:
    """Check that frames streamed in pieces are those generated at once, and complete."""
    lm, batch = lm_of(subject), prompts_for(subject.stage)
    wanted = continued(lm, batch)
    rows = len(batch.target.lengths)
    generators = [row_generators(seed, 1)[0] for seed in range(rows)]
    found = Tokens.empty(rows, subject.stage.target.num_levels)
    for piece in lm.stream(batch.given, batch.target, NEW_FRAMES, Sampling(), generators):
        found = found.append(piece)
    require_same_tokens(found, wanted, "streamed", subject.mismatches)


#: Frames of both sides of each row: either may have none.
_LEFT, _RIGHT = (3, 0, 2), (2, 4, 0)
_ONE_SIDED = "the model continues from the left only"

Sides = tuple[tuple[Tokens, ...], Tokens, Tokens]


def _sides(subject: Subject) -> Sides:
    stage = subject.stage
    whole = [left + NEW_FRAMES + right for left, right in zip(_LEFT, _RIGHT, strict=True)]
    left, right = (tokens_for(stage.target, lengths) for lengths in (_LEFT, _RIGHT))
    return given_for(stage, whole), left, right


def _filled(lm: TwoSided, sides: Sides, seeds: Sequence[int]) -> Tokens:
    given, left, right = sides
    generators = [row_generators(seed, 1)[0] for seed in seeds]
    return lm.fill(given, left, NEW_FRAMES, right, Sampling(), generators)


def check_fills_rows_as_if_alone(subject: Subject) -> None:
    """Check that a gap in each of several ragged rows is filled with legal codes, as if alone."""
    sides, lm = _sides(subject), lm_of(subject)
    if not isinstance(lm, TwoSided):
        raise NotApplicable(_ONE_SIDED)
    rows = range(len(_LEFT))
    with unchanged(given=sides[0], left=sides[1], right=sides[2]):
        together = _filled(lm, sides, rows)
    target = subject.stage.target
    wanted = (len(_LEFT), target.num_levels, NEW_FRAMES)
    shape = tuple(together.ids.shape)
    require(shape == wanted, f"fill returned {shape}, not {wanted}")
    require_legal(together, target.codebook_size, "filled")
    for row in rows:
        given, left, right = sides
        own = tuple(Tokens.full(tokens.row(row)[None]) for tokens in given)
        ends = (Tokens.full(side.row(row)[None]) for side in (left, right))
        alone = _filled(lm, (own, *ends), [row])  # type: ignore[arg-type]
        found = Tokens.full(together.ids[row : row + 1])
        require_same_tokens(found, alone, f"row {row} filled in a batch", subject.mismatches)


def check_filling_sees_both_sides(subject: Subject) -> None:
    """Check that what is drawn depends on the left side and on the right side."""
    sides, lm = _sides(subject), scrambled(lm_of(subject), 1.0)  # so that each code matters
    if not isinstance(lm, TwoSided):
        raise NotApplicable(_ONE_SIDED)
    size, draws = subject.stage.target.codebook_size, [range(k, k + len(_LEFT)) for k in range(16)]
    given, left, right = sides
    for name, others in (
        ("left", (given, _moved(left, size), right)),
        ("right", (given, left, _moved(right, size))),
    ):
        pairs = ((_filled(lm, each, seeds).ids for each in (sides, others)) for seeds in draws)
        same = all(torch.equal(*pair) for pair in pairs)  # up to the first that differs
        require(not same, f"the same frames are drawn whatever the {name} side holds")


def _moved(side: Tokens, size: int) -> Tokens:
    """Return other codes."""
    return Tokens((side.ids + 1) % size, side.lengths).cut(side.lengths)
