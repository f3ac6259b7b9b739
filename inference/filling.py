"""Redraw a stretch of a recording between two sides that are kept.

``Gap`` is the audio side: which samples are replaced, which kept ones the stages see, and how drawn
audio is joined to both sides. ``fill_gap`` runs the stages. A model that looks both ways
(``TwoSided``) draws the gap from both sides. Any other continues the left side several times, and
the continuation stays after which the right side is likeliest under that model.

The kept sides are encoded one by one, so nothing that is drawn depends on what was in the gap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from segue.core.assembly import Assembly
from segue.core.audio import Audio
from segue.core.config import StageConfig
from segue.core.errors import GenerationError
from segue.core.interfaces import StageBatch, StageLM, Tokens
from segue.core.progress import Progress
from segue.core.sampling import own_generator
from segue.core.spec import SliceSpec
from segue.core.two_sided import TwoSided
from segue.core.validation import real_number
from segue.inference.generation import StageRun, window_frames
from segue.inference.promises import calling, check_frames, scores_of
from segue.inference.request import Request

BOTH_SIDES = "drawn from both sides"
LEFT_SIDE = "continues the left side"
BEST = "best of {} continuations of the left side"

#: The tokens of one row of each stream, ``[Q, N]``.
Rows = dict[str, Int64[Tensor, "Q N"]]


@dataclass(frozen=True)
class Gap:
    """The stretch of a recording that is redrawn."""

    recording: Audio  # the whole recording, at the pipeline's rate
    start: int  # the first sample that is replaced
    end: int  # the first that is kept again
    # Samples that are drawn: whole frames of every stream. More than the gap if the recording ends
    # in it.
    frames: int
    # The stages see samples ``first`` to ``start`` and ``end`` to ``last``: whole frames or none.
    first: int
    last: int

    @classmethod
    def of(
        cls, recording: Audio, start: object, end: object, unit: int, least: float, most: float
    ) -> Gap:
        """Widen a stretch to whole frames.

        Args:
            recording: at the pipeline's rate.
            unit: samples after which every stream has a whole number of frames. A side shorter
                than this is drawn anew as well.
            least: seconds that must be kept.
            most: longest part of each side that the stages see, in seconds.

        Raises:
            GenerationError: if the stretch does not lie in the recording or leaves too little.
        """
        total, rate = recording.wave.shape[0], recording.sample_rate
        stop = recording.seconds if end is None else real_number(end)
        begin = real_number(start)
        if begin is None or not 0 <= begin < recording.seconds:
            fix = f"use 0 to less than {recording.seconds:g}, in seconds"
            raise GenerationError("start", f"{start!r} is out of range", fix)
        # Rounding of a rate that was changed may leave the end a sample short.
        if stop is None or not begin < stop <= recording.seconds + 1 / rate:
            fix = f"use more than {begin:g}, at most {recording.seconds:g}, in seconds"
            raise GenerationError("end", f"{end!r} is out of range", fix)
        first = round(begin * rate)
        first = 0 if first < unit else first
        frames = max(unit, math.ceil((min(round(stop * rate), total) - first) / unit) * unit)
        after = first + frames
        after = total if total - after < unit else after
        frames = math.ceil((after - first) / unit) * unit
        whole = int(most * rate) // unit * unit
        before, behind = (min(whole, n // unit * unit) for n in (first, total - after))
        if before + behind < least * rate:
            kept = (before + behind) / rate
            fix = f"keep at least {least:g} s beside it, or use generate"
            raise GenerationError("start", f"leaves {kept:.2f} s of the recording", fix)
        return cls(recording, first, after, frames, first - before, after + behind)

    @property
    def left(self) -> Float[Tensor, "T"]:
        """The kept samples before the gap that the stages see."""
        return self.recording.wave[self.first : self.start]

    @property
    def right(self) -> Float[Tensor, "T"]:
        """The kept samples after the gap that the stages see."""
        return self.recording.wave[self.end : self.last]

    def joined(self, drawn: Float[Tensor, "T"], fade: int) -> Float[Tensor, "T"]:
        """Put decoded audio into the gap; it fades over ``fade`` samples of each kept side.

        Args:
            drawn: decoded samples from ``first`` on: the left side, the gap, the right side.
        """
        wave = self.recording.wave.clone()
        begin, stop = max(self.first, self.start - fade), min(self.last, self.end + fade)
        before, behind = self.start - begin, stop - self.end
        weight = torch.ones(stop - begin)
        weight[:before] = torch.linspace(0, 1, before + 2)[1:-1]
        weight[len(weight) - behind :] = torch.linspace(1, 0, behind + 2)[1:-1]
        new = drawn[begin - self.first : stop - self.first]
        wave[begin:stop] = weight * new + (1 - weight) * wave[begin:stop]
        return wave


def fill_gap(
    assembly: Assembly,
    stage_lm: Callable[[str], StageLM],
    request: Request,
    frames: Fraction,
    sides: tuple[Mapping[str, Tokens], Mapping[str, Tokens]],
    progress: Progress | None = None,
) -> tuple[dict[str, Tokens], dict[str, str]]:
    """Let every stage draw its part of a gap.

    Args:
        frames: length of the gap in seconds: whole frames of every stream.
        sides: tokens of every stream of the left and the right side, one row each.

    Returns:
        The tokens of every stream, sides included, and for each stage the way in which it filled
        the gap.
    """
    (left, right), candidates = sides, request.candidates
    rows: Rows = {}
    for name, spec in assembly.streams.items():
        hole = left[name].ids.new_zeros(spec.num_levels, int(frames * spec.frame_rate))
        rows[name] = torch.cat([left[name].row(0), hole, right[name].row(0)], dim=1)
    ways = {}
    stages = [stage for stage in map(assembly.config.stage, request.sampling) if stage]
    for index, config in enumerate(stages):
        lm = stage_lm(config.name)
        target = lm.stage.target
        before, after = (int(side[target.stream].lengths[0]) for side in sides)
        count = int(frames * target.frame_rate)
        stage = _StageGap(lm, config, index, rows, before, count, after, request, progress)
        with torch.inference_mode():
            if isinstance(lm, TwoSided) and after:
                drawn, ended, way = stage.from_both_sides(lm), False, BOTH_SIDES
            else:
                many = candidates if after else 1
                drawn, ended = stage.best_continuation(many)
                way = LEFT_SIDE if many == 1 else BEST.format(many)
        way += ", ended early" if ended else ""
        rows[target.stream][target.start : target.stop, before : before + stage.count] = drawn
        ways[config.name] = way
    return {name: Tokens.full(row[None].clone()) for name, row in rows.items()}, ways


class _StageGap:
    """The gap of one stage: ``before`` known frames, ``count`` to draw, ``after`` known ones.

    Streams that the stage is given are known in the gap too, as earlier stages drew them.
    """

    def __init__(
        self,
        lm: StageLM,
        config: StageConfig,
        index: int,
        rows: Rows,
        before: int,
        count: int,
        after: int,
        request: Request,
        progress: Progress | None,
    ) -> None:
        self.lm, self.stage, self.count = lm, lm.stage, count
        self._rows, self._before, self._after = rows, before, after
        self._overlap = config.overlap
        self._sampling, self._progress = request.sampling[config.name], progress
        self._seeds = request.seed, index
        self._unit = lm.stage.alignment
        self._window = window_frames(lm.stage, config.crop_seconds)
        #: Frames of a side that are shown where the gap leaves no room for more.
        self._least = max(self._unit, self._window // 4 // self._unit * self._unit)

    def _slice(self, part: SliceSpec, start: int, stop: int) -> Int64[Tensor, "Q N"]:
        return self._rows[part.stream][part.start : part.stop, start:stop]

    def _given(self, start: int, stop: int, batch: int = 1) -> tuple[Tokens, ...]:
        """Return the given slices of target frames ``start`` to ``stop``, once for each row."""
        found = []
        for index, part in enumerate(self.stage.given):
            first = int(start * self.stage.frames_per_target_frame(index))
            row = self._slice(part, first, self.stage.given_frames(index, stop))
            found.append(Tokens.full(row.expand(batch, -1, -1)))
        return tuple(found)

    def continuations(
        self, batch: int, count: int | None = None
    ) -> tuple[Int64[Tensor, "B Q N"], list[bool]]:
        """Continue the left side.

        Returns:
            The first ``count`` frames of the gap, by default all, ``batch`` times; and whether
            each ended before them.
        """
        known = self._slice(self.stage.target, 0, self._before).expand(batch, -1, -1)
        count = self.count if count is None else count
        run = StageRun(
            self.lm,
            Tokens.full(known),
            count,
            window=self._window,
            overlap=self._overlap,
            sampling=self._sampling,
            generators=[own_generator(*self._seeds, row) for row in range(batch)],
            progress=self._progress,
        )
        run.finish(self._given(0, self._before + count, batch))
        return run.known.ids[:, :, self._before :], run.ended

    def best_continuation(self, candidates: int) -> tuple[Int64[Tensor, "Q N"], bool]:
        """Return the continuation of the left side after which the right side is likeliest.

        And whether it ended before the gap does.
        """
        drawn, ended = self.continuations(candidates)
        if candidates == 1:
            return drawn[0], ended[0]
        after = min(self._after, self._least)
        start = self._before + self.count
        first = start - min(start, (self._window - after) // self._unit * self._unit)
        target = self._slice(self.stage.target, 0, start + after).repeat(candidates, 1, 1)
        target[:, :, self._before : start] = drawn
        given = self._given(first, start + after, candidates)
        scores = scores_of(self.lm, StageBatch(Tokens.full(target[:, :, first:]), given))
        likely = scores[:, :, -after:].float().sum(dim=(1, 2))
        # One that ended leaves the rest of the gap silent: take it only if all did.
        likely[torch.tensor(ended, device=likely.device)] -= 1e9
        best = int(likely.argmax())
        return drawn[best], ended[best]

    def from_both_sides(self, lm: TwoSided) -> Int64[Tensor, "Q N"]:
        """Draw the gap between both sides.

        A gap too long for one window is first continued from the left, up to where one window
        shows both ends of what is left.
        """
        most = max(self._unit, self._window - 2 * self._least)
        ahead = max(0, self.count - most)
        parts = [self._slice(self.stage.target, 0, self._before)]
        if ahead:
            parts.append(self.continuations(1, ahead)[0][0])
        start, left = self._before + ahead, self.count - ahead
        stop = start + left
        spare = max(2 * self._least, self._window - left)
        after = min(self._after, max(self._least, spare - start))
        first = start - min(start, spare - after)
        with calling(lm, "fill"):
            piece = lm.fill(
                self._given(first, stop + after),
                Tokens.full(torch.cat(parts, dim=1)[None, :, first:]),
                left,
                Tokens.full(self._slice(self.stage.target, stop, stop + after)[None]),
                self._sampling,
                [own_generator(*self._seeds, 0, ahead)],
            )
        target = self.stage.target
        check_frames(self.lm, piece, 1, target.num_levels, target.codebook_size, left)
        if self._progress is not None:
            self._progress(self.stage.name, self.count, self.count)
        return torch.cat([*parts[1:], piece.ids[0]], dim=1)
