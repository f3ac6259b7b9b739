"""One call of ``StageLM.stream``: its rows, its random draws, and where each row ends.

Shape legend: B rows asked for, R rows computed (2 B with guidance, 3 B if prompts guide as well),
q levels, V codebook size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from segue.core.errors import GenerationError
from segue.core.interfaces import Ids, Lengths, StageLM, Tokens
from segue.core.options import Sampling
from segue.core.sampling import sample
from segue.plugins.layers.decoding import row_by_row
from segue.plugins.layers.stage import evaluating, given_in_time

#: Between two pieces the work can be stopped.
FRAMES_PER_PIECE = 8
#: Frames among which ``Sampling.repeats`` counts.
RECENT_FRAMES = 16
#: Seconds at the end of the prompt that rows without it know, in a stage that is given nothing.
LAST_SECONDS = 1.0
#: The model's own distribution.
PLAIN = Sampling()


def on_device(generator: torch.Generator, device: torch.device) -> torch.Generator:
    """Return a generator that draws on a CUDA device, seeded by one draw of ``generator``.

    Noise that is drawn on the CPU would make every step wait for a copy. Other devices draw on the
    CPU, where a seed gives the same audio everywhere.
    """
    if device.type != "cuda" or generator.device.type == "cuda":
        return generator
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.Generator(device).manual_seed(seed)


def last_frames(tokens: Tokens, count: int) -> Int64[Tensor, "B Q F"]:
    """Return the last ``count`` frames of each row, with -1 before its first one."""
    places = tokens.lengths[:, None] - count + torch.arange(count, device=tokens.lengths.device)
    padded = functional.pad(tokens.ids, (0, 1), value=-1)  # so that there is a frame to gather
    found = padded.gather(2, places.clamp_min(0)[:, None].expand(-1, padded.shape[1], -1))
    return found.masked_fill((places < 0)[:, None], -1)


class Drawer:
    """Draw tokens, with classifier-free guidance where it is asked for.

    With guidance each row is computed once more, knowing less, and its logits are moved away from
    those (Ho and Salimans, arXiv 2207.12598, equation 6 with w = guidance - 1). See
    ``StreamCall`` for what those rows know.

    Args:
        prompt: the frames of the B rows before the first that is drawn; counted by
            ``sampling.repeats``.
    """

    def __init__(
        self,
        sampling: Sampling,
        generators: Sequence[torch.Generator],
        device: torch.device | str = "cpu",
        prompt: Tokens | None = None,
    ) -> None:
        self.sampling = sampling
        #: ``[B, Q, RECENT_FRAMES]``, the newest last, -1 where there is none; only with repeats.
        self._recent = None
        if prompt is not None and sampling.repeats is not None and sampling.temperature > 0:
            self._recent = last_frames(prompt, RECENT_FRAMES)
        self.generators = [on_device(generator, torch.device(device)) for generator in generators]
        #: By what the rows lack that are computed for it; in their order.
        self.guides = [s for s in (sampling.guidance, sampling.prompt_guidance) if s != 1.0]

    @property
    def plain(self) -> bool:
        """Return whether all logits are drawn from as they are, with noise of a CPU."""
        on_cpu = all(generator.device.type == "cpu" for generator in self.generators)
        whole = self.sampling.top_k is None and self.sampling.top_p is None
        return on_cpu and whole and self._recent is None

    def per_row(self, values: Tensor) -> Tensor:
        """Return ``[B, ...]`` as ``[R, ...]``, for the rows that are computed."""
        return torch.cat([values] * (1 + len(self.guides))) if self.guides else values

    def guide(self, logits: Float[Tensor, "R ..."]) -> Float[Tensor, "B ..."]:
        """Return the logits of the rows asked for."""
        if not self.guides:
            return logits
        own, *others = logits.float().chunk(1 + len(self.guides))
        first, *more = (o + g * (own - o) for o, g in zip(others, self.guides, strict=True))
        return sum((moved - own for moved in more), start=first)

    def draw(self, logits: Float[Tensor, "R V"], level: int = 0) -> Int64[Tensor, "B"]:
        """Draw one token of a level per row."""
        return self.draw_levels(logits[:, None], (level,))[:, 0]

    def draw_levels(
        self, logits: Float[Tensor, "R q V"], levels: Sequence[int]
    ) -> Int64[Tensor, "B q"]:
        """Draw the tokens of several levels that do not depend on each other, level by level."""
        logits = self.guide(logits)
        drawn = sample(logits.flatten(0, 1), self.sampling, self.generators)
        drawn = drawn.view(logits.shape[:2])
        return drawn if self._recent is None else self._less_repeated(drawn, logits, levels)

    def _less_repeated(
        self, drawn: Int64[Tensor, "B q"], logits: Float[Tensor, "B q V"], levels: Sequence[int]
    ) -> Int64[Tensor, "B q"]:
        """Redraw tokens that are repeated too often, and remember the new frame."""
        assert self._recent is not None and self.sampling.repeats is not None
        recent = self._recent[:, list(levels)]
        often = (recent == drawn[..., None]).sum(dim=-1) >= self.sampling.repeats
        # Use the row's own generator: a row does not depend on those beside it.
        for row, index in often.nonzero().tolist():
            again = sample(logits[row, index][None], PLAIN, [self.generators[row]])
            drawn[row, index] = again[0]
        self._recent[:, list(levels)] = torch.cat([recent[..., 1:], drawn[..., None]], dim=-1)
        return drawn

    def ends(self, odds: Float[Tensor, " R"]) -> list[bool]:
        """Draw for each row whether its audio ends here, from the log-odds of that.

        Uses the model's own probability whatever the temperature; at temperature 0 a row ends
        where the end is more likely than not.
        """
        likely = self.guide(odds).float().sigmoid().cpu()
        if self.sampling.temperature == 0:
            return [bool(p > 0.5) for p in likely]
        draws = [torch.rand((), generator=g, device=g.device) for g in self.generators]
        return (torch.stack(draws).cpu() < likely).tolist()


class StreamCall:
    """The rows of one call and what is known of their ends.

    Arguments are as for ``StageLM.stream``; ``after`` ``[B]`` is the number of known frames that
    follow the new ones.

    Attributes:
        given: the given slices of the R rows, cut to the frames that pass during the target: with
            guidance nothing for the second B rows; with prompt guidance for the last B rows those
            that pass after the prompt.
        prompt: the prompts of the R rows; with prompt guidance the last B rows have none, or their
            last second in a stage that is given nothing.
        drawer: draws tokens for the rows.
        rows: B.
        empty: whether nothing is to be computed.

    Raises:
        GenerationError: if the model cannot do what was asked for, or too little is given.
    """

    def __init__(
        self,
        lm: StageLM,
        given: tuple[Tokens, ...],
        prompt: Tokens,
        num_frames: int,
        sampling: Sampling,
        generators: Sequence[torch.Generator],
        after: Lengths | None = None,
    ) -> None:
        lengths = prompt.lengths + num_frames + (0 if after is None else after)
        place = f"stage {lm.stage.name!r}"
        if len(generators) != len(lengths):
            problem = f"{len(generators)} random generators for {len(lengths)} rows"
            raise GenerationError(place, problem, "pass one generator per row")
        lm.check_sampling(sampling)
        for index, (spec, tokens) in enumerate(zip(lm.stage.given, given, strict=True)):
            needed = lm.stage.given_frames(index, lengths)
            short = (tokens.lengths < needed).nonzero()
            if len(short):
                row = int(short[0])
                raise GenerationError(
                    place,
                    f"row {row} has {int(tokens.lengths[row])} frames of {spec}, "
                    f"but {int(needed[row])} are needed",
                    "generate or pass that many frames of it first",
                )
        self.drawer = Drawer(sampling, generators, lm.device, prompt)
        self.rows = len(lengths)
        self.empty = num_frames <= 0 or self.rows == 0
        self._device = lm.device.type
        self._modules = list(lm.modules())  # collected once: doing so for each frame takes time
        self.given = given_in_time(lm.stage, given, lengths)
        self.prompt = prompt.cut(prompt.lengths)
        self._known = prompt.lengths.tolist()
        self._ends = [num_frames] * len(lengths)  # the new frames that each row has in the end
        if self.drawer.guides:
            self._add_rows(lm, sampling)

    def _add_rows(self, lm: StageLM, sampling: Sampling) -> None:
        """Add the rows that know less, of which guidance moves away."""
        prompts = list(self.prompt.rows())
        givens = [list(tokens.rows()) for tokens in self.given]
        added, given = list(prompts), [list(rows) for rows in givens]
        if sampling.guidance != 1.0:
            added += prompts
            for rows, own in zip(given, givens, strict=True):
                rows += [row[:, :0] for row in own]
        if sampling.prompt_guidance != 1.0:
            kept = 0 if givens else math.ceil(LAST_SECONDS * lm.stage.target.frame_rate)
            added += [prompt[:, max(0, prompt.shape[1] - kept) :] for prompt in prompts]
            for index, (rows, own) in enumerate(zip(given, givens, strict=True)):
                rate = lm.stage.frames_per_target_frame(index)
                passed = [known * rate.numerator // rate.denominator for known in self._known]
                rows += [row[:, first:] for row, first in zip(own, passed, strict=True)]
        self.given = tuple(map(Tokens.stack, given))
        self.prompt = Tokens.stack(added)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Compute a piece in eval and inference mode, without autocast.

        Models leave this context before they yield, so that the consumer of the pieces runs in its
        own modes.
        """
        autocast = torch.autocast(self._device, enabled=False)
        with evaluating(self._modules), torch.inference_mode(), autocast:
            yield

    def draw_ends(self, frame: int, head: nn.Linear | None, hidden: Float[Tensor, "R D"]) -> None:
        """Draw which rows end instead of having new frame ``frame``, from its hidden states.

        A row never ends before it has a frame. Without an end head nothing is drawn.
        """
        if head is None:
            return
        for row, ends in enumerate(self.drawer.ends(row_by_row(head, hidden)[..., 0])):
            if ends and self._known[row] + frame > 0:
                self._ends[row] = min(self._ends[row], frame)

    def over(self, frame: int) -> bool:
        """Return whether every row ends before new frame ``frame``."""
        return all(frame >= end for end in self._ends)

    def reached(self, frames: Sequence[int], like: Tensor) -> Bool[Tensor, "B F"]:
        """Return which rows reach each of these new frames, on the device of ``like``."""
        rows = [[frame < end for frame in frames] for end in self._ends]
        return torch.tensor(rows, device=like.device)

    def pieces(self, draw: Callable[[], Iterator[Int64[Tensor, "B Q"]]]) -> Iterator[Tokens]:
        """Yield pieces of the frames that ``draw`` computes one after the other.

        A few at a time: to enter and leave the modes of computing takes as long as a small step.
        """
        first, frames = 0, None
        while not self.empty:
            with self.computing():
                frames = frames or draw()
                found = list(islice(frames, FRAMES_PER_PIECE))
            if found:
                yield self._piece(first, torch.stack(found, dim=2))
            if len(found) < FRAMES_PER_PIECE:
                return
            first += len(found)

    def _piece(self, first: int, ids: Ids) -> Tokens:
        """Return new frames from ``first`` on of the rows that reach them, and 0 elsewhere.

        Called outside ``computing``, which makes ordinary tensors of inference tensors: the piece
        can be trained on.
        """
        frames = range(first, first + ids.shape[2])
        if all(frames[-1] < end for end in self._ends):  # nothing to move to the device
            return Tokens.full(ids.clone())
        reached = self.reached(frames, ids).long()
        return Tokens(ids * reached[:, None], reached.sum(dim=1))


def stream_frames(
    lm: StageLM,
    given: tuple[Tokens, ...],
    prompt: Tokens,
    num_frames: int,
    sampling: Sampling,
    generators: Sequence[torch.Generator],
) -> Iterator[Tokens]:
    """Yield pieces of ``lm.frames(call, num_frames)``: the ``stream`` of models that draw frame
    after frame, which compute within ``StreamCall.computing``."""
    call = StreamCall(lm, given, prompt, num_frames, sampling, generators)
    draw: Callable[..., Iterator[Int64[Tensor, "B Q"]]] = lm.frames  # type: ignore[assignment]
    return call.pieces(partial(draw, call, num_frames))


def generate_from_stream(
    lm: StageLM,
    given: tuple[Tokens, ...],
    prompt: Tokens,
    num_frames: int,
    sampling: Sampling,
    generators: Sequence[torch.Generator],
) -> Tokens:
    """Join all pieces of ``lm.stream``: the ``generate`` of every model that streams."""
    pieces = list(lm.stream(given, prompt, num_frames, sampling, generators))
    if not pieces:
        return Tokens.full(prompt.ids[:, :, :0])
    ids = torch.cat([piece.ids for piece in pieces], dim=2)
    # Only the last piece of a row may be short, so the sum of lengths is where its frames end.
    return Tokens(ids, torch.stack([piece.lengths for piece in pieces]).sum(dim=0))
