"""Run the stages of a pipeline for any length of audio.

``StageRun`` continues the stream of one stage in windows: the model sees at most ``crop_seconds``
at once, as it did in training, so memory does not grow with the length of the audio. Each window
continues the one before; ``overlap`` says how much of it is known already. ``Generation`` runs all
stages of a request. A stage is run only as far as somebody needs its tokens: to the end for
``Pipeline.continue_``, chunk by chunk for ``Pipeline.stream``. Its draws depend on the request
alone, not on the order in which stages take turns, so both give the same audio.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from segue.core.assembly import Assembly
from segue.core.errors import GenerationError
from segue.core.interfaces import StageLM, Tokenizer, Tokens
from segue.core.options import Sampling
from segue.core.progress import Progress
from segue.core.sampling import own_generator
from segue.core.spec import ACOUSTIC, StageSpec
from segue.inference.promises import calling, check_frames, check_pieces, check_scores
from segue.inference.request import Request

#: A row of the batch, and the first and the last of its frames that a window shows.
Span = tuple[int, int, int]

#: Candidates that are drawn together.
TOGETHER = 32

#: Stands for a piece after a window's last one; a model that yields None is refused.
CLOSED: Any = object()


def window_frames(stage: StageSpec, crop_seconds: float) -> int:
    """Return the target frames of a window: a whole number of frames of every given slice."""
    unit = stage.alignment
    return max(1, int(crop_seconds * stage.target.frame_rate) // unit) * unit


def check_chooser(lm: StageLM, tokenizer: Tokenizer) -> None:
    """Refuse candidates of a stage that the tokenizer of its stream cannot choose from.

    Raises:
        GenerationError: naming the stage.
    """
    place, kind = f"stages.{lm.stage.name}.sampling.candidates", type(tokenizer)
    if kind.likeness is Tokenizer.likeness:
        problem = f"{kind.__name__} does not compare continuations with their prompts"
        raise GenerationError(place, problem, "leave it at 1")
    if lm.stage.target.start:
        problem = "the first levels of these tokens are drawn by an earlier stage"
        raise GenerationError(place, problem, "leave it at 1, or set it for that stage")


class StageRun:
    """One stage that continues every row of a prompt, window by window and piece by piece.

    Args:
        prompt: ragged ``[B, Q, N]``, possibly without frames; every row a whole number of
            ``stage.alignment`` frames.
        num_frames: frames to add to each row.
        window: most frames that the model sees at once, known and new together.
        overlap: part of a window that is known frames once the audio exceeds one window.
        generators: as many for each row as candidates are drawn.
        chunk: most new frames of the first window; each further one may hold four times as many.
            None for as many as fit.
        tokenizer: chooses one of each row's candidates.
        progress: called with the stage's name, frames done and frames in all.
    """

    def __init__(
        self,
        lm: StageLM,
        prompt: Tokens,
        num_frames: int,
        *,
        window: int,
        overlap: float,
        sampling: Sampling,
        generators: Sequence[torch.Generator],
        chunk: int | None = None,
        tokenizer: Tokenizer | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.lm, self.stage = lm, lm.stage
        self.num_frames = num_frames
        self._unit = lm.stage.alignment
        self._window, self._overlap, self._chunk = window, overlap, chunk
        self._sampling, self._progress = sampling, progress
        seconds, rate = sampling.candidate_seconds, float(lm.stage.target.frame_rate)
        #: Frames of a candidate; None for as many as fit.
        self._length = None if seconds is None or sampling.candidates < 2 else int(seconds * rate)
        self._start, self._firsts = prompt.lengths, prompt.lengths.tolist()
        batch, levels, longest = prompt.ids.shape
        self._tokenizer, self._candidates = tokenizer, len(generators) // max(1, batch)
        #: Of each row.
        self._generators = [
            generators[row * self._candidates : (row + 1) * self._candidates]
            for row in range(batch)
        ]
        # Room for all frames at once: appending to a tensor would copy it for every frame.
        self._ids = prompt.ids.new_zeros(batch, levels, longest + num_frames)
        self._ids[:, :, :longest] = prompt.ids
        #: Frames added to each row; a row that ended counts as full, its last frame repeated.
        self.done = 0
        #: For each row the frames it has when it ends; all of them if it does not end by itself.
        self.ends = [length + num_frames for length in self._firsts]
        #: The new frames of the current window as the model draws them; None between windows.
        self.pieces: Iterator[Tokens] | None = None
        self._active = list(range(batch))  # rows of the current window
        self._until = 0  # the value of ``done`` after the current window
        self._waits = 0  # pieces without a frame since the last one with frames

    @property
    def known(self) -> Tokens:
        """Prompt and frames added so far, ``[B, Q, N]``; a row that ended is filled up."""
        lengths = self._start + self.done
        return Tokens(self._ids[:, :, : int(lengths.max())], lengths)

    @property
    def ended(self) -> list[bool]:
        """Return for each row whether the model drew its end."""
        return [self._ended(row) for row in range(len(self.ends))]

    def _ended(self, row: int) -> bool:
        return bool(self.ends[row] < self._firsts[row] + self.num_frames)

    @property
    def over(self) -> bool:
        """Return whether all rows have ended."""
        return all(map(self._ended, self._active))

    def needs(self) -> list[Int64[Tensor, "B"]]:
        """Return the frames of each given slice, by row, that the next window needs."""
        stops = self._start + self.done + self._window_shape()[1]
        return [self.stage.given_frames(index, stops) for index in range(len(self.stage.given))]

    def open_window(self, given: Sequence[Tokens]) -> None:
        """Let the model begin the next window; ``pieces`` then yields its frames.

        Args:
            given: one batch per given slice, aligned with frame 0 of the prompt, with at least the
                frames that ``needs`` returned.
        """
        budget, count = self._window_shape()
        self._active = [row for row in self._active if not self._ended(row)]
        self._until = self.done + count
        if self._chunk is not None:
            # The first sound comes early. Later there is time to fill windows, which cost about as
            # much however few of their frames are new.
            self._chunk = min(4 * self._chunk, self._window)
        lengths = [self._firsts[row] + self.done for row in self._active]
        starts = [length - min(length, budget) for length in lengths]
        spans = list(zip(self._active, starts, lengths, strict=True))
        if self._candidates > 1:
            self.pieces = self._best(given, spans, count)
            return
        with calling(self.lm, "stream"):
            pieces = self.lm.stream(
                self._given_windows(given, spans, count),
                self._known(spans),
                count,
                self._sampling,
                [generator for row, *_ in spans for generator in self._generators[row]],
            )
        self.pieces = check_pieces(self.lm, pieces)

    def _known(self, spans: Sequence[Span]) -> Tokens:
        """Return the frames that a window shows of each row."""
        return Tokens.stack([self._ids[row, :, start:stop] for row, start, stop in spans])

    def _best(self, given: Sequence[Tokens], spans: Sequence[Span], count: int) -> Iterator[Tokens]:
        """Yield a window whole: of each row the candidate that is most like what came before."""
        best: list[Tensor] = []
        together = max(1, TOGETHER // self._candidates)
        for at in range(0, len(spans), together):  # memory does not grow with the batch
            best += self._chosen(given, spans[at : at + together], count)
        yield Tokens.stack(best)

    def _chosen(self, given: Sequence[Tokens], spans: Sequence[Span], count: int) -> list[Tensor]:
        """Return a window of each row, the best of its candidates, ``[Q, count]``."""
        assert self._tokenizer is not None
        target, many = self.stage.target, self._candidates
        rows = [span for span in spans for _ in range(many)]
        known, windows = self._known(rows), self._given_windows(given, rows, count)
        generators = [generator for row, *_ in spans for generator in self._generators[row]]
        with calling(self.lm, "generate"):
            new = self.lm.generate(windows, known, count, self._sampling, generators)
        check_frames(self.lm, new, len(rows), target.num_levels, target.codebook_size, count)
        best, wholes = [], known.append(new)
        for index, (row, start, stop) in enumerate(spans):
            # All that is new against the prompt; once that has left the window, halves.
            at = max(self._firsts[row] - start, (stop - start) // 2)
            own = range(index * many, (index + 1) * many)
            before = Tokens.stack([wholes.row(i)[:, :at] for i in own])
            after = Tokens.stack([wholes.row(i)[:, at:] for i in own])
            with calling(self._tokenizer, "likeness"):
                scores = self._tokenizer.likeness(before, after)
            check_scores(self._tokenizer, scores, (many,), "likeness")
            best.append(new.row(index * many + int(scores.argmax())))
        return best

    def take(self, piece: Tokens) -> None:
        """Store a piece of the current window; ``CLOSED`` closes the window."""
        if piece is CLOSED:
            self.pieces = None
            if self.done < self._until:  # the window stayed short: all of its rows ended
                for row in self._active:
                    self._end(row, self._firsts[row] + self.done)
            return
        target, left = self.stage.target, self._until - self.done
        levels, rows = target.num_levels, len(self._active)
        check_frames(self.lm, piece, rows, levels, target.codebook_size, left, self._waits)
        count = piece.ids.shape[2]
        self._waits = 0 if count else self._waits + 1
        for index, length in enumerate(piece.lengths.tolist()):
            row = self._active[index]
            if self._ended(row):
                continue
            start = self._firsts[row] + self.done
            self._ids[row, :, start : start + length] = piece.ids[index, :, :length]
            if length < count:
                self._end(row, start + length)
        self._advance_to(self.done + count)

    def finish(self, given: Sequence[Tokens]) -> None:
        """Add all frames, given whole slices aligned with frame 0 of the prompt."""
        while self.done < self.num_frames and not self.over:
            if self.pieces is None:
                self.open_window(given)
            assert self.pieces is not None
            with torch.inference_mode(), calling(self.lm, "stream"):
                piece = next(self.pieces, CLOSED)
            self.take(piece)
        if self.done < self.num_frames:
            self.fill_up()

    def fill_up(self) -> None:
        """Count all frames as done, as every row has ended."""
        self._advance_to(self.num_frames)

    def _advance_to(self, done: int) -> None:
        self.done = done
        if self._progress is not None:
            self._progress(self.stage.name, self.done, self.num_frames)

    def _end(self, row: int, at: int) -> None:
        """End a row; later stages are given its last frame until the other rows have ended."""
        if not self._ended(row):
            self.ends[row] = at
            if at:
                self._ids[row, :, at:] = self._ids[row, :, at - 1 : at]

    def _window_shape(self) -> tuple[int, int]:
        """Return how many known frames the next window shows at most, and how many it draws."""
        left = self.num_frames - self.done
        if self.lm.unbounded:
            return int((self._start + self.done).max()), left
        wanted = left
        for most in (self._chunk, self._length):  # up to where every given slice ends a frame
            if most is not None:
                wanted = min(wanted, -(-max(1, most) // self._unit) * self._unit)
        # Show all that leaves room for the wanted frames, if those fit one window; else the
        # overlap. No row's length counts, so that a row has the same windows alone and in a batch.
        budget = max(self._window - wanted, int(self._window * self._overlap))
        # Whole units: a window must start where every given slice starts a frame.
        budget = min(budget // self._unit * self._unit, self._window - self._unit)
        return budget, min(wanted, self._window - budget)

    def _given_windows(
        self, given: Sequence[Tokens], spans: Sequence[Span], count: int
    ) -> tuple[Tokens, ...]:
        return tuple(self._given_window(i, g, spans, count) for i, g in enumerate(given))

    def _given_window(self, index: int, given: Tokens, spans: Sequence[Span], count: int) -> Tokens:
        """Return the frames of a given stream that lie under each row's window."""
        ratio = self.stage.frames_per_target_frame(index)
        rows = []
        for row, start, stop in spans:
            last = self.stage.given_frames(index, stop + count)
            rows.append(given.row(row)[:, int(start * ratio) : last])
        return Tokens.stack(rows)


class Generation:
    """All stages of one request.

    Args:
        stage_lm: finds a stage's model by name.
        added: seconds to add, a whole number of frames of every stream.
        prompt: the tokens of every stream of the prompt, ragged.
        tokenizer_of: finds the tokenizer of a stream.
        known: streams that are not generated, as the prompt is all of them.
        progress: called with a stage's name, frames done and frames in all.

    Attributes:
        runs: of the stages that draw, in order.
    """

    def __init__(
        self,
        assembly: Assembly,
        stage_lm: Callable[[str], StageLM],
        request: Request,
        added: Fraction,
        prompt: Mapping[str, Tokens],
        tokenizer_of: Callable[[str], Tokenizer],
        known: frozenset[str] = frozenset(),
        progress: Progress | None = None,
    ) -> None:
        self._streams, self.prompt = assembly.streams, prompt
        self.runs: list[StageRun] = []
        self._run_of: dict[tuple[str, int], StageRun] = {}  # who draws each level of a stream
        stages = [stage for stage in map(assembly.config.stage, request.sampling) if stage]
        for index, config in enumerate(stages):
            lm = stage_lm(config.name)
            target, chunk = lm.stage.target, request.chunk_seconds
            sampling = request.sampling[config.name]
            if target.stream in known:
                continue
            run = StageRun(
                lm,
                prompt[target.stream].levels(target.start, target.stop),
                int(added * target.frame_rate),
                window=window_frames(lm.stage, config.crop_seconds),
                overlap=config.overlap,
                sampling=sampling,
                # Each stage has its own random numbers: changing the sampling of one stage leaves
                # the draws of the others alone.
                generators=[
                    own_generator(seed, index, candidate)
                    for seed in request.seeds
                    for candidate in range(sampling.candidates)
                ],
                chunk=None if chunk is None else max(1, int(chunk * target.frame_rate)),
                tokenizer=tokenizer_of(target.stream),
                progress=progress,
            )
            self.runs.append(run)
            for level in range(target.start, target.stop):
                self._run_of[target.stream, level] = run

    def streams(self) -> dict[str, Tokens]:
        """Return all streams, prompt included, each row cut where its audio ends."""
        return {name: self._gather(name).cut(self._ends(name)) for name in self._streams}

    @property
    def ended(self) -> list[bool]:
        """Return for each row whether a stage drew where its audio ends."""
        rows = zip(*(run.ended for run in self.runs), strict=True)
        return [any(row) for row in rows]

    def acoustic_pieces(self, seconds: Fraction) -> Iterator[Tokens]:
        """Yield new acoustic frames ``[B, Q, n]`` of at most so many seconds at a time.

        A stage goes on as soon as those before it have drawn the tokens it is given.
        """
        step, total = max(1, int(seconds * self._streams[ACOUSTIC].frame_rate)), 0
        runs = [run for run in self.runs if run.stage.target.stream == ACOUSTIC]
        whole = max(run.num_frames for run in runs)
        while total < whole:
            until = min(whole, total + step)
            for run in runs:
                self.advance(run, until)
            known = self._gather(ACOUSTIC)
            starts = self.prompt[ACOUSTIC].lengths + total
            ends = torch.minimum(starts + until - total, self._ends(ACOUSTIC))
            pairs = zip(starts.tolist(), ends.tolist(), strict=True)
            rows = [known.ids[row, :, a:b] for row, (a, b) in enumerate(pairs)]
            if not any(row.shape[1] for row in rows):
                return
            yield Tokens.stack(rows)
            total = until

    def advance(self, run: StageRun, frames: int | None = None) -> None:
        """Let a stage add ``frames`` frames, and earlier stages what it needs for that.

        None stands for all: no further than the last row goes, if an earlier stage drew where rows
        end.
        """
        if frames is None:
            stream = run.stage.target.stream
            frames = int((self._ends(stream) - self.prompt[stream].lengths).max())
        while run.done < min(frames, run.num_frames):
            if run.over:
                run.fill_up()
                return
            if run.pieces is None:
                for given, needed in zip(run.stage.given, run.needs(), strict=True):
                    missing = int((needed - self.prompt[given.stream].lengths).max())
                    for level in range(given.start, given.stop):
                        earlier = self._run_of.get((given.stream, level))
                        if earlier is not None:
                            self.advance(earlier, missing)
                slices = run.stage.given
                run.open_window([self._gather(g.stream, g.start, g.stop) for g in slices])
            assert run.pieces is not None
            # Left between pieces: who consumes a stream is not in this mode.
            with torch.inference_mode(), calling(run.lm, "stream"):
                piece = next(run.pieces, CLOSED)
            run.take(piece)

    def _gather(self, stream: str, start: int = 0, stop: int | None = None) -> Tokens:
        """Return the frames known so far at all levels of a slice."""
        levels = range(start, self._streams[stream].num_levels if stop is None else stop)
        rows = [self._level(stream, level) for level in levels]
        lengths = torch.stack([row.lengths for row in rows]).amin(dim=0)
        width = min(row.ids.shape[2] for row in rows)
        return Tokens(torch.cat([row.ids[:, :, :width] for row in rows], dim=1), lengths)

    def _level(self, stream: str, level: int) -> Tokens:
        run = self._run_of.get((stream, level))
        if run is None:  # a known stream
            return self.prompt[stream].levels(level, level + 1)
        own = level - run.stage.target.start
        return run.known.levels(own, own + 1)

    def _ends(self, stream: str) -> Int64[Tensor, "B"]:
        """Return the frames of a stream that each row has when it ends, as known so far."""
        prompt, rate = self.prompt[stream].lengths, self._streams[stream].frame_rate
        found = [
            [int(end * rate / run.stage.target.frame_rate) for end in run.ends] for run in self.runs
        ]
        return torch.tensor(found, device=prompt.device).amin(dim=0) if found else prompt
