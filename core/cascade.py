"""The stages of one request, each continuing its stream from what the others have made so far."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

import torch

from segue.core.assembly import AssemblyPlan
from segue.core.config.schema import StageConfig
from segue.core.generated import GenerationRequest
from segue.core.generation import StageRun, window_frames
from segue.core.interfaces import StageLM, Tokens
from segue.core.progress import Progress
from segue.core.sampling import row_generators
from segue.core.spec import ACOUSTIC, SliceSpec

Level = tuple[str, int]


@dataclass(frozen=True)
class Source:
    """Where one level of a stream comes from: tokens that are known, or a stage that makes them.

    Attributes:
        tokens: all levels of the known stream, or None.
        run: the stage, or None.
        level: of the tokens, or of the stage's target.
    """

    tokens: Tokens | None
    run: StageRun | None
    level: int

    def known(self) -> Tokens:
        tokens = self.tokens if self.run is None else self.run.known
        assert tokens is not None
        return tokens.levels(self.level, self.level + 1)


class Cascade:
    """All stages of one request. A stage is only run as far as somebody needs its tokens.

    Args:
        assembly: the pipeline's plan.
        stage_lm: finds a stage's model by name.
        request: what was asked for.
        added: seconds to add, a whole number of frames of every stream.
        prompt: every stream of the prompt, ragged.
        known: streams that are not generated: the prompt is all of them.
        progress: called with a stage's name, frames done and frames in all.
    """

    def __init__(
        self,
        assembly: AssemblyPlan,
        stage_lm: Callable[[str], StageLM],
        request: GenerationRequest,
        added: Fraction,
        prompt: Mapping[str, Tokens],
        known: frozenset[str],
        progress: Progress | None,
    ) -> None:
        self._streams = assembly.streams
        self._prompt = {name: tokens.lengths for name, tokens in prompt.items()}
        self._sources: dict[Level, Source] = {}
        self._runs: list[StageRun] = []
        for stream in known:
            tokens = prompt[stream]
            for level in range(tokens.num_levels):
                self._sources[stream, level] = Source(tokens, None, level)
        for index, config in enumerate(assembly.config.stages):
            lm = stage_lm(config.name)
            target = lm.stage.target
            if target.stream in known:
                continue
            run = self._run(index, config, lm, request, added, prompt, progress)
            self._runs.append(run)
            for level in range(target.num_levels):
                self._sources[target.stream, target.start + level] = Source(None, run, level)

    def _run(
        self,
        index: int,
        config: StageConfig,
        lm: StageLM,
        request: GenerationRequest,
        added: Fraction,
        prompt: Mapping[str, Tokens],
        progress: Progress | None,
    ) -> StageRun:
        target = lm.stage.target
        chunk = request.chunk_seconds
        return StageRun(
            lm,
            prompt[target.stream].levels(target.start, target.stop),
            int(added * target.frame_rate),
            window=window_frames(lm.stage, config.crop_seconds),
            overlap=config.overlap,
            sampling=request.sampling[config.name],
            # Each stage has its own stream of random numbers: changing one stage's sampling
            # leaves the draws of the others alone.
            generators=row_generators(request.seed + (index << 32), request.batch),
            chunk=None if chunk is None else max(1, int(chunk * target.frame_rate)),
            progress=progress,
        )

    def finish(self) -> dict[str, Tokens]:
        """Run every stage to the end, one after the other; all streams, each row cut at its end."""
        for run in self._runs:
            # No further than the last row goes, if an earlier stage drew where they end.
            stream = run.lm.stage.target.stream
            self._advance(run, int((self._ends(stream) - self._prompt[stream]).max()))
        return {name: self._cut(name) for name in self._streams}

    @property
    def ended(self) -> list[bool]:
        """For each row, whether a stage drew where its audio ends."""
        rows = zip(*(run.ended for run in self._runs), strict=True)
        return [any(row) for row in rows]

    def acoustic_pieces(self, seconds: Fraction) -> Iterator[Tokens]:
        """New acoustic frames ``[B, Q, n]`` of at most so many seconds at a time.

        A stage goes on as soon as those before it have drawn what it looks at.
        """
        spec = self._streams[ACOUSTIC]
        step, total = max(1, int(seconds * spec.frame_rate)), 0
        runs = [run for run in self._runs if run.lm.stage.target.stream == ACOUSTIC]
        whole = max(run.num_frames for run in runs)
        while total < whole:
            until = min(whole, total + step)
            for run in runs:
                self._advance(run, until)
            known = self._gather(SliceSpec(ACOUSTIC, 0, spec.num_levels, 0, spec.frame_rate))
            starts = self._prompt[ACOUSTIC] + total
            ends = torch.minimum(starts + until - total, self._ends(ACOUSTIC))
            pairs = zip(starts.tolist(), ends.tolist(), strict=True)
            rows = [known.ids[row, :, a:b] for row, (a, b) in enumerate(pairs)]
            if not any(row.shape[1] for row in rows):
                return
            yield Tokens.stack(rows)
            total = until

    def _advance(self, run: StageRun, frames: int) -> None:
        """Let a stage add ``frames`` frames, and those before it what it needs for that."""
        while run.done < min(frames, run.num_frames):
            for given, needed in zip(run.lm.stage.given, run.needs(), strict=True):
                for level in range(given.start, given.stop):
                    source = self._sources[given.stream, level].run
                    if source is not None:
                        missing = (needed - self._prompt[given.stream]).max()
                        self._advance(source, int(missing))
            run.advance(lambda: [self._gather(given) for given in run.lm.stage.given])

    def _gather(self, part: SliceSpec) -> Tokens:
        """What is known so far of all levels of a slice."""
        levels = range(part.start, part.stop)
        rows = [self._sources[part.stream, level].known() for level in levels]
        lengths = torch.stack([row.lengths for row in rows]).amin(dim=0)
        width = min(row.ids.shape[2] for row in rows)
        return Tokens(torch.cat([row.ids[:, :, :width] for row in rows], dim=1), lengths)

    def _ends(self, stream: str) -> torch.Tensor:
        """``[B]`` frames of a stream that each row has when it ends, as known so far."""
        rate = self._streams[stream].frame_rate
        found = []
        for run in self._runs:
            own = run.lm.stage.target.frame_rate
            found.append([int(end * rate / own) for end in run.ends])
        device = self._prompt[stream].device
        if not found:
            return self._prompt[stream]
        return torch.tensor(found, device=device).amin(dim=0)

    def _cut(self, stream: str) -> Tokens:
        spec = self._streams[stream]
        known = self._gather(SliceSpec(stream, 0, spec.num_levels, 0, spec.frame_rate))
        return known.cut(self._ends(stream))
