"""Any length is generated in windows: none exceeds the training crop, each is aligned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from tests.stage_runs import run_stage

from segue.core.errors import GenerationError
from segue.core.interfaces import StageBatch, StageLM, StageLoss, Tokenizer, Tokens
from segue.core.options import Options, Sampling
from segue.core.sampling import own_generator, row_generators
from segue.core.spec import SliceSpec, StageSpec
from segue.inference.generation import check_chooser, window_frames
from segue.plugins.models.delay_transformer.config import DelayTransformerOptions
from segue.plugins.models.delay_transformer.model import DelayTransformer
from segue.plugins.models.flat_transformer.config import FlatTransformerOptions
from segue.plugins.models.flat_transformer.model import FlatTransformer
from segue.plugins.tokenizers.mel_kmeans.config import MelKMeansOptions
from segue.plugins.tokenizers.mel_kmeans.model import MelKMeansTokenizer
from segue.plugins.tokenizers.register_kmeans.config import RegisterKMeansOptions

TARGET_RATE = 50
RATIOS = [None, Fraction(1, 2), Fraction(1), Fraction(2)]
PROMPTS = [(0,), (4,), (40,), (0, 6, 2, 30), (12, 8, 14), (2, 0, 22, 40)]
MANY = 10**6


def stage_of(ratio: Fraction | None, levels: int = 2, codes: int = MANY) -> StageSpec:
    """A stage whose given slice has ``ratio`` frames per target frame; None: nothing is given."""
    target = SliceSpec("acoustic", 0, levels, codes, Fraction(TARGET_RATE))
    if ratio is None:
        return StageSpec("alone", target)
    given = SliceSpec("semantic", 0, 1, codes, TARGET_RATE * ratio)
    return StageSpec("coarse", target, (given,))


def frames_of(frames: int, ratio: Fraction) -> int:
    """Given frames that pass in ``frames`` target frames, a partial one included."""
    return -(-frames * ratio.numerator // ratio.denominator)


@dataclass
class Window:
    """What the model was shown of one row, and how much it was to add."""

    given: tuple[torch.Tensor, ...]
    prompt: torch.Tensor
    count: int


@dataclass
class Seen:
    calls: list[list[Window]] = field(default_factory=list)


class Recorder(StageLM):
    """Continues a row that counts its own frames, and keeps what it was shown."""

    def __init__(self, stage: StageSpec) -> None:
        super().__init__(Options(), stage)
        self.seen = Seen()

    def loss(self, batch: StageBatch) -> StageLoss:
        raise NotImplementedError

    def score(self, batch: StageBatch) -> torch.Tensor:
        raise NotImplementedError

    def generate(
        self,
        given: tuple[Tokens, ...],
        prompt: Tokens,
        num_frames: int,
        sampling: Sampling,
        generators: Sequence[torch.Generator],
    ) -> Tokens:
        windows = [
            Window(tuple(g.row(i) for g in given), prompt.row(i), num_frames)
            for i in range(len(generators))
        ]
        self.seen.calls.append(windows)
        rows = [self.next(w, g) for w, g in zip(windows, generators, strict=True)]
        return Tokens.full(torch.stack(rows))

    def next(self, window: Window, generator: torch.Generator) -> torch.Tensor:
        """Frame numbers go on where the window's context ends (or its given slice begins)."""
        ratio = self.stage.frames_per_target_frame(0) if self.stage.given else Fraction(1)
        if window.prompt.shape[1]:
            start = int(window.prompt[0, -1]) + 1
        elif window.given:
            start = int(int(window.given[0][0, 0]) / ratio)
        else:
            start = 0
        frames = torch.arange(start, start + window.count)
        return frames.expand(self.stage.target.num_levels, -1)


class Mixer(Recorder):
    """Every id depends on all that was shown and on the row's own random numbers."""

    def next(self, window: Window, generator: torch.Generator) -> torch.Tensor:
        parts = (window.prompt, *window.given)
        sums = [int((part * torch.arange(1, part.shape[1] + 1)).sum()) for part in parts]
        seen = sum(
            (17 + 2 * i) * (s + part.shape[1])
            for i, (s, part) in enumerate(zip(sums, parts, strict=True))
        )
        shape = (self.stage.target.num_levels, window.count)
        drawn = torch.randint(0, 1000, shape, generator=generator)
        return (drawn + seen) % 1009


def counting(*lengths: int, levels: int = 2) -> Tokens:
    """Rows whose ids are their own frame numbers; the padding is something else."""
    ids = torch.arange(max(lengths)).expand(len(lengths), levels, -1).clone()
    tokens = Tokens(ids, torch.tensor(lengths))
    ids.masked_fill_(~tokens.mask[:, None], 777_777)
    return tokens


def run(
    lm: StageLM,
    given: Sequence[Tokens],
    prompt: Tokens,
    frames: int,
    window: int,
    overlap: float,
    seed: int = 0,
    sampling: Sampling | None = None,
) -> Tokens:
    return run_stage(
        lm,
        given,
        prompt,
        frames,
        window=window,
        overlap=overlap,
        sampling=sampling or Sampling(),
        generators=row_generators(seed, prompt.ids.shape[0]),
    )


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("lengths", PROMPTS)
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.9])
def test_windows_are_aligned_and_within_the_crop(
    ratio: Fraction | None, lengths: tuple[int, ...], overlap: float
) -> None:
    stage = stage_of(ratio)
    window = 10
    counts_on = ratio is not None or overlap > 0  # else a recorder cannot know where it is
    for frames in (1, 2, 7, 10, 11, 53):
        lm = Recorder(stage)
        given = [
            counting(*[frames_of(n + frames, rate) + 3 for n in lengths], levels=1)
            for rate in ([] if ratio is None else [ratio])
        ]
        prompt = counting(*lengths)
        result = run(lm, given, prompt, frames, window, overlap)
        assert result.lengths.tolist() == [n + frames for n in lengths]
        assert result.ids.shape == (len(lengths), 2, max(lengths) + frames)
        # A recorder counts on from what it is shown: any slip or gap would show here.
        if counts_on:
            for row in result.rows():
                assert torch.equal(row, torch.arange(row.shape[1]).expand(2, -1))
        assert sum(windows[0].count for windows in lm.seen.calls) == frames
        known = list(lengths)
        for windows in lm.seen.calls:
            for index, seen in enumerate(windows):
                kept = seen.prompt.shape[1]
                start = known[index] - kept
                assert seen.count >= 1 and kept + seen.count <= window
                assert start % stage.alignment == 0
                if counts_on:
                    assert seen.prompt[0].tolist() == list(range(start, known[index]))
                for part in seen.given:
                    first, last = start * ratio, frames_of(known[index] + seen.count, ratio)
                    assert part[0].tolist() == list(range(int(first), last))
                known[index] += seen.count


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("lengths", [lengths for lengths in PROMPTS if len(lengths) > 1])
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.8])
def test_a_ragged_batch_equals_its_rows_alone(
    ratio: Fraction | None, lengths: tuple[int, ...], overlap: float
) -> None:
    random = torch.Generator().manual_seed(1)
    frames = 47
    given = []
    if ratio is not None:
        counts = [frames_of(n + frames, ratio) for n in lengths]
        rows = [torch.randint(0, 99, (1, count), generator=random) for count in counts]
        given = [Tokens.stack(rows)]
    prompt = Tokens.stack([torch.randint(0, 99, (2, n), generator=random) for n in lengths])
    together = run(Mixer(stage_of(ratio)), given, prompt, frames, 12, overlap, seed=5)
    for row in range(len(lengths)):
        single = run(
            Mixer(stage_of(ratio)),
            [Tokens.full(part.row(row)[None]) for part in given],
            Tokens.full(prompt.row(row)[None]),
            frames,
            12,
            overlap,
            seed=5 + row,
        )
        assert torch.equal(single.row(0), together.row(row))
        assert torch.equal(single.row(0)[:, : lengths[row]], prompt.row(row))


def test_what_fits_one_window_is_one_window() -> None:
    """Then all that fits of the prompt is shown, not the overlap alone."""
    lm = Recorder(stage_of(None))
    run(lm, [], counting(40), 3, 10, 0.5)
    (windows,) = lm.seen.calls
    assert (windows[0].prompt.shape[1], windows[0].count) == (7, 3)


def test_long_audio_goes_on_by_what_the_overlap_leaves() -> None:
    lm = Recorder(stage_of(None))
    run(lm, [], counting(40), 23, 10, 0.6)
    shown = [(windows[0].prompt.shape[1], windows[0].count) for windows in lm.seen.calls]
    assert shown == [(6, 4)] * 5 + [(7, 3)]


def test_without_overlap_windows_are_independent() -> None:
    lm = Recorder(stage_of(Fraction(1)))
    run(lm, [counting(60, levels=1)], counting(20), 40, 10, 0.0)
    shown = [(windows[0].prompt.shape[1], windows[0].count) for windows in lm.seen.calls]
    assert shown == [(0, 10)] * 4


def test_an_overlap_of_nearly_everything_still_goes_on() -> None:
    lm = Recorder(stage_of(Fraction(1, 2)))
    run(lm, [counting(40, levels=1)], counting(10), 9, 4, 0.99)
    assert [windows[0].count for windows in lm.seen.calls] == [2, 2, 2, 2, 1]


def test_a_window_of_one_unit_works() -> None:
    lm = Recorder(stage_of(Fraction(1, 2)))
    result = run(lm, [counting(40, levels=1)], counting(6), 7, 2, 0.5)
    assert result.row(0)[0].tolist() == list(range(13))


def test_no_frames_leave_the_prompt_as_it_is() -> None:
    lm = Recorder(stage_of(None))
    prompt = counting(3, 5)
    same = run(lm, [], prompt, 0, 10, 0.5)
    assert same.lengths.tolist() == [3, 5] and torch.equal(same.row(1), prompt.row(1))
    assert not lm.seen.calls


def test_progress_counts_up_to_all_frames() -> None:
    told: list[tuple[str, int, int]] = []
    run_stage(
        Recorder(stage_of(None)),
        [],
        counting(2),
        9,
        window=4,
        overlap=0.5,
        sampling=Sampling(),
        generators=row_generators(0, 1),
        progress=lambda *what: told.append(what),
    )
    assert told == [("alone", n, 9) for n in (2, 4, 6, 8, 9)]


@pytest.mark.parametrize(
    ("ratio", "seconds", "frames"),
    [
        (None, 1.0, 50),
        (None, 0.99, 49),
        (None, 0.001, 1),
        (Fraction(1), 0.3, 15),
        (Fraction(2), 0.31, 15),
        (Fraction(1, 2), 1.0, 50),
        (Fraction(1, 2), 0.99, 48),
        (Fraction(1, 2), 0.03, 2),
        (Fraction(1, 4), 1.0, 48),
        (Fraction(1, 4), 0.001, 4),
    ],
)
def test_window_frames_are_whole_units_within_the_crop(
    ratio: Fraction | None, seconds: float, frames: int
) -> None:
    stage = stage_of(ratio)
    assert window_frames(stage, seconds) == frames
    assert frames % stage.alignment == 0


def test_the_slowest_of_several_given_slices_sets_the_unit() -> None:
    slow = stage_of(Fraction(1, 4))
    for given in ((*slow.given, slow.target), (slow.target, *slow.given)):
        stage = replace(slow, given=given)
        assert stage.alignment == 4 and window_frames(stage, 0.99) == 48


# --- real models ------------------------------------------------------------------------------

SIZE = {"width": 16, "depth": 1, "heads": 2, "dropout": 0.3}


def model(kind: str, stage: StageSpec) -> StageLM:
    """Weights far from their small initial values, so that what is shown matters."""
    torch.manual_seed(0)
    built: StageLM
    if kind == "flat":
        built = FlatTransformer(FlatTransformerOptions(**SIZE), stage)
    else:
        built = DelayTransformer(DelayTransformerOptions(**SIZE), stage)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return built


def random_tokens(seed: int, levels: int, *lengths: int) -> Tokens:
    random = torch.Generator().manual_seed(seed)
    return Tokens.stack([torch.randint(0, 9, (levels, n), generator=random) for n in lengths])


@pytest.mark.parametrize("kind", ["flat", "delay"])
def test_real_models_go_on_from_what_the_window_shows(kind: str) -> None:
    """A window's tokens are those that the model draws for that window alone."""
    stage = stage_of(Fraction(1, 2), codes=9)
    lm = model(kind, stage)
    given, prompt = random_tokens(2, 1, 40), random_tokens(1, 2, 12)
    greedy = Sampling(temperature=0)
    result = run(lm, [given], prompt, 12, 8, 0.5, sampling=greedy)
    known = prompt
    for start in (8, 12, 16):
        part = Tokens.full(given.ids[:, :, start // 2 : start // 2 + 4])
        shown = Tokens.full(known.ids[:, :, start:])
        known = known.append(lm.generate((part,), shown, 4, greedy, row_generators(0, 1)))
    assert torch.equal(result.ids, known.ids)


class Chooser(Tokenizer):
    """Likes a large id at the end."""

    def __init__(self) -> None:
        super().__init__(RegisterKMeansOptions())
        self.asked: list[tuple[list[int], list[int]]] = []

    def encode(self, wave: torch.Tensor, lengths: torch.Tensor) -> Tokens:
        raise NotImplementedError

    def likeness(self, known: Tokens, new: Tokens) -> torch.Tensor:
        self.asked.append((known.lengths.tolist(), new.lengths.tolist()))
        return new.ids[:, 0, -1].float()


def small_lm() -> DelayTransformer:
    torch.manual_seed(0)
    options = DelayTransformerOptions(width=16, depth=1, heads=2)
    lm = DelayTransformer(options, stage_of(None, codes=50)).eval()
    lm.heads.weight.data *= 20  # so that what is drawn depends on the prompt, too
    return lm


def chosen(
    rows: list[torch.Tensor],
    frames: int,
    many: int,
    chunk: int | None = None,
    chooser: Chooser | None = None,
    **sampling: Any,
) -> Tokens:
    """Continue rows with ``many`` candidates each."""
    settings = Sampling(candidates=many, **sampling)
    return run_stage(
        small_lm(), [], Tokens.stack(rows), frames,
        window=16, overlap=0.5, sampling=settings, chunk=chunk, tokenizer=chooser or Chooser(),
        generators=[own_generator(row, 0, c) for row in range(len(rows)) for c in range(many)],
    )  # fmt: skip


def test_the_best_of_a_rows_candidates_stays() -> None:
    """Each candidate is what its generator draws alone; rows choose on their own."""
    rows = [
        torch.arange(first, first + count).expand(2, -1)
        for first, count in ((0, 6), (9, 6), (3, 4))
    ]
    together = chosen(rows, 5, 8)
    for row, known in enumerate(rows):
        alone = [
            small_lm().generate(
                (), Tokens.full(known[None]), 5, Sampling(), [own_generator(row, 0, c)]
            )
            for c in range(8)
        ]
        best = max((one.row(0) for one in alone), key=lambda ids: int(ids[0, -1]))
        assert len({int(one.ids[0, 0, -1]) for one in alone}) > 1
        assert torch.equal(together.row(row)[:, known.shape[1] :], best)


def test_rows_of_one_length_keep_their_own_prompts() -> None:
    """Only a row that equals the one before it takes over its keys and values."""
    rows = [torch.arange(first, first + 6).expand(2, -1) for first in (0, 0, 9)]
    together = chosen(rows, 5, 1)
    for row, known in enumerate(rows):
        alone = small_lm().generate(
            (), Tokens.full(known[None]), 5, Sampling(), [own_generator(row, 0, 0)]
        )
        assert torch.equal(together.row(row)[:, 6:], alone.row(0))


def test_every_window_is_chosen_for_itself() -> None:
    row = torch.arange(6).expand(2, -1)
    assert chosen([row], 30, 2).lengths.tolist() == [36]
    whole, chunked = chosen([row], 10, 2), chosen([row], 10, 2, chunk=2)
    assert whole.lengths.equal(chunked.lengths) and not whole.ids.equal(chunked.ids)


def test_short_candidates_are_chosen_by_all_that_is_new() -> None:
    """50 frames a second: three at a time, against the prompt as long as the window shows it."""
    row, chooser = torch.arange(6).expand(2, -1), Chooser()
    found = chosen([row], 18, 2, chooser=chooser, candidate_seconds=0.06)
    sides = [(known[0], new[0]) for known, new in chooser.asked]
    # A window of 16 shows 13 frames before three new ones: 13 from frame 2 on, then from 5 on.
    assert sides == [(6, 3), (6, 6), (6, 9), (6, 10), (6, 10), (6, 10)]
    assert found.lengths.tolist() == [24]
    alone = chosen([row], 18, 1, candidate_seconds=0.06)
    assert alone.ids.equal(chosen([row], 18, 1).ids)  # there is nothing to choose


def test_a_tokenizer_that_compares_nothing_cannot_choose() -> None:
    tokenizer = MelKMeansTokenizer(MelKMeansOptions())
    with pytest.raises(GenerationError, match="does not compare") as caught:
        check_chooser(Recorder(stage_of(None)), tokenizer)
    assert caught.value.place == "stages.alone.sampling.candidates"
    fine = StageSpec("fine", SliceSpec("acoustic", 1, 2, 50, Fraction(50)))
    with pytest.raises(GenerationError, match="earlier stage"):
        check_chooser(Recorder(fine), Chooser())
