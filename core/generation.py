"""Run one stage for any length: windows of the training crop, each continuing the one before.

A stage LM sees at most a window of ``crop_seconds``, as it did in training; so memory does not
grow with the length of the audio. A model that slides a window of its own over any length
(``StageLM.unbounded``) is run in one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

from segue.core.errors import GenerationError
from segue.core.interfaces import StageLM, Tokens
from segue.core.options import Sampling
from segue.core.progress import Progress
from segue.core.spec import StageSpec


def window_frames(stage: StageSpec, crop_seconds: float) -> int:
    """Target frames of one window: a whole number of frames of every given slice."""
    unit = stage.alignment
    return max(1, int(crop_seconds * stage.target.frame_rate) // unit) * unit


class StageRun:
    """One stage that continues every row of a prompt, in pieces as they become known.

    What it draws depends on the arguments alone, not on when it is told to go on: so stages that
    take turns make what they would make one after the other.

    Args:
        lm: the stage's model.
        prompt: ragged ``[B, Q, N]``, possibly without frames; every row a whole number of
            ``stage.alignment`` frames.
        num_frames: frames to add to each row.
        window: most frames that the model sees at once, known and new together.
        overlap: part of a window that is known frames once the audio exceeds one window.
        sampling: how tokens are drawn.
        generators: one per row.
        chunk: most new frames of one window; None: as many as fit.
        progress: called with the stage's name, frames done and frames in all.

    Raises:
        GenerationError: if a prompt ends within a frame of a given slice.
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
        progress: Progress | None = None,
    ) -> None:
        self.lm = lm
        self.num_frames = num_frames
        self._unit = lm.stage.alignment
        self._check(prompt.lengths.tolist())
        self._window, self._overlap, self._chunk = window, overlap, chunk
        self._sampling, self._generators, self._progress = sampling, list(generators), progress
        self._start, self._firsts = prompt.lengths, prompt.lengths.tolist()
        batch, levels, longest = prompt.ids.shape
        # Room for all frames at once: appending to a tensor would copy it for every frame.
        self._ids = prompt.ids.new_zeros(batch, levels, longest + num_frames)
        self._ids[:, :, :longest] = prompt.ids
        #: Frames added to each row; a row that ended counts as full, its last frame repeated.
        self.done = 0
        #: For each row the frames that it has when it ends; all of them if it does not.
        self.ends = [length + num_frames for length in self._firsts]
        self._active = list(range(batch))
        self._pieces: Iterator[Tokens] | None = None
        self._until = 0  # what ``done`` will be once the window is drawn

    @property
    def known(self) -> Tokens:
        """Prompt and what was added so far, ``[B, Q, N]``; a row that ended is filled up."""
        lengths = self._start + self.done
        return Tokens(self._ids[:, :, : int(lengths.max())], lengths)

    @property
    def result(self) -> Tokens:
        """``known``, each row cut where it ended."""
        return self.known.cut(torch.tensor(self.ends, device=self._ids.device))

    @property
    def ended(self) -> list[bool]:
        """For each row, whether the model drew its end."""
        return [self._ended(row) for row in range(len(self.ends))]

    @property
    def over(self) -> bool:
        return self.done >= self.num_frames

    def needs(self) -> list[Int64[Tensor, "B"]]:
        """Frames of each given slice, by row, that must be known before ``advance``."""
        if self._pieces is not None or all(map(self._ended, self._active)):
            return [torch.zeros_like(self._start) for _ in self.lm.stage.given]
        count = self._shape()[1]
        stops, stage = self._start + self.done + count, self.lm.stage
        return [stage.given_frames(index, stops) for index in range(len(stage.given))]

    def advance(self, given: Callable[[], Sequence[Tokens]]) -> None:
        """Take the next piece.

        Args:
            given: asked when a window begins: one batch per given slice, aligned with frame 0 of
                the prompt; at least the frames that ``needs`` says.
        """
        if all(map(self._ended, self._active)):
            self.done = self.num_frames
        else:
            if self._pieces is None:
                self._pieces = self._open(given())
            with torch.inference_mode():  # whatever the model does itself
                piece = next(self._pieces, None)
            if piece is None:
                self._pieces = None
                if self.done < self._until:  # fewer than asked for: none of its rows goes on
                    for row in self._active:
                        self._end(row, self._firsts[row] + self.done)
                return
            self._store(piece)
        if self._progress is not None:
            self._progress(self.lm.stage.name, self.done, self.num_frames)

    def _check(self, lengths: Sequence[int]) -> None:
        odd = [length for length in lengths if length % self._unit]
        if odd:
            raise GenerationError(
                f"stages.{self.lm.stage.name}",
                f"a prompt has {odd[0]} frames",
                f"cut it to a multiple of {self._unit} frames, where all its given slices end a "
                "frame",
            )

    def _shape(self) -> tuple[int, int]:
        """Known frames that the next window shows at most, and new ones that it draws."""
        left = self.num_frames - self.done
        if self.lm.unbounded:
            return int((self._start + self.done).max()), left
        wanted = left
        if self._chunk is not None:  # up to where every given slice ends a frame
            wanted = min(left, -(-max(1, self._chunk) // self._unit) * self._unit)
        budget = self._context_budget(wanted)
        return budget, min(wanted, self._window - budget)

    def _context_budget(self, wanted: int) -> int:
        """Known frames the model is shown at most.

        All that leave room for what is wanted, if that fits one window; else the overlap. It
        depends on no row, so that a row's windows are the same alone and in a batch; it is a whole
        number of units, so that a window starts where every given slice starts a frame.
        """
        budget = max(self._window - wanted, int(self._window * self._overlap))
        return min(budget // self._unit * self._unit, self._window - self._unit)

    def _open(self, given: Sequence[Tokens]) -> Iterator[Tokens]:
        budget, count = self._shape()
        self._active = [row for row in self._active if not self._ended(row)]
        self._until = self.done + count
        lengths = [self._firsts[row] + self.done for row in self._active]
        starts = [length - min(length, budget) for length in lengths]
        spans = list(zip(self._active, starts, lengths, strict=True))
        return self.lm.stream(
            tuple(self._given_window(i, g, spans, count) for i, g in enumerate(given)),
            Tokens.stack([self._ids[row, :, start:stop] for row, start, stop in spans]),
            count,
            self._sampling,
            [self._generators[row] for row in self._active],
        )

    def _given_window(
        self, index: int, given: Tokens, spans: Sequence[tuple[int, int, int]], count: int
    ) -> Tokens:
        """The frames of a given stream that lie under each row's window."""
        ratio = self.lm.stage.frames_per_target_frame(index)
        rows = []
        for row, start, stop in spans:
            last = self.lm.stage.given_frames(index, stop + count)
            rows.append(given.row(row)[:, int(start * ratio) : last])
        return Tokens.stack(rows)

    def _store(self, piece: Tokens) -> None:
        count = piece.ids.shape[2]
        for index, (row, length) in enumerate(
            zip(self._active, piece.lengths.tolist(), strict=True)
        ):
            if self._ended(row):
                continue
            start = self._firsts[row] + self.done
            self._ids[row, :, start : start + length] = piece.ids[index, :, :length]
            if length < count:
                self._end(row, start + length)
        self.done += count

    def _ended(self, row: int) -> bool:
        return bool(self.ends[row] < self._firsts[row] + self.num_frames)

    def _end(self, row: int, at: int) -> None:
        """A row ends: later stages are given its last frame until the others have ended."""
        if self._ended(row):
            return
        self.ends[row] = at
        if at:
            self._ids[row, :, at:] = self._ids[row, :, at - 1 : at]


def run_stage(
    lm: StageLM,
    given: Sequence[Tokens],
    prompt: Tokens,
    num_frames: int,
    *,
    window: int,
    overlap: float,
    sampling: Sampling,
    generators: Sequence[torch.Generator],
    chunk: int | None = None,
    progress: Progress | None = None,
) -> Tokens:
    """Continue every row of ``prompt`` by ``num_frames`` frames; arguments as for ``StageRun``.

    Args:
        given: whole streams, aligned with frame 0 of the prompt, one per given slice.

    Returns:
        Prompt and continuation of each row, ``[B, Q, N + num_frames]``.

    Raises:
        GenerationError: if a prompt ends within a frame of a given slice.
    """
    if num_frames <= 0:
        return prompt
    run = StageRun(
        lm, prompt, num_frames, window=window, overlap=overlap, sampling=sampling,
        generators=generators, chunk=chunk, progress=progress,
    )  # fmt: skip
    while not run.over:
        run.advance(lambda: given)
    return run.result
