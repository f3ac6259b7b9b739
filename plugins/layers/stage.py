"""What the transformer stage models share: loss, score and the frame of generation."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from segue.core.errors import ConfigError, GenerationError
from segue.core.interfaces import Ids, Lengths, StageBatch, StageLM, StageLoss, Tokens
from segue.core.options import Decoding, Sampling
from segue.core.spec import StageSpec
from segue.plugins.layers.config import (
    CausalOptions,
    ConditionOptions,
    SequenceOptions,
)
from segue.plugins.layers.decoding import chosen_backend
from segue.plugins.layers.drawing import Drawer
from segue.plugins.layers.transformer import transformer_blocks


@contextmanager
def evaluating(module: nn.Module, parts: Sequence[nn.Module] | None = None) -> Iterator[None]:
    """Eval mode for the duration; every submodule gets its own mode back.

    Args:
        parts: ``module.modules()``, where this is done so often that looking them up shows.
    """
    training = [part for part in (module.modules() if parts is None else parts) if part.training]
    if training:
        module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


@dataclass(frozen=True)
class Likelihood:
    """What a model says of a target.

    Attributes:
        nll: ``[B, Q, N]`` negative log-likelihood of every id; anything at padding.
        ends: ``[B, N]`` log-odds that the audio ends after a frame, if the model learns that.
    """

    nll: Float[Tensor, "B Q N"]
    ends: Float[Tensor, "B N"] | None = None


class ConditionedStageLM(StageLM):
    """A stage model with given slices that may be dropped in training.

    What every first-party family shares, whatever order it predicts in.
    """

    config: ConditionOptions

    def blocks(self) -> Sequence[nn.Module]:
        return transformer_blocks(self)

    def _given(self, given: tuple[Tokens, ...], lengths: Lengths) -> tuple[Tokens, ...]:
        """The given frames that pass during ``lengths`` target frames, and no later ones: what
        is scored and learnt from is what generation sees."""
        return tuple(
            tokens.cut(self.stage.given_frames(index, lengths))
            for index, tokens in enumerate(given)
        )

    def _dropped(self, given: tuple[Tokens, ...]) -> tuple[Tokens, ...]:
        """In training, nothing at all of the given slices for some rows."""
        rate = self.config.condition_dropout
        if not (self.training and rate and given):
            return given
        kept = torch.rand(len(given[0].lengths), device=given[0].ids.device) >= rate
        # A batch without any frame would have no columns to embed: what is left is padding.
        return tuple(Tokens(tokens.ids, tokens.lengths * kept) for tokens in given)

    def stream(
        self,
        given: tuple[Tokens, ...],
        prompt: Tokens,
        num_frames: int,
        sampling: Sampling,
        generators: Sequence[torch.Generator],
    ) -> Iterator[Tokens]:
        lengths = prompt.lengths + num_frames
        self._check(given, lengths, sampling, len(generators))
        if num_frames <= 0 or len(lengths) == 0:
            return
        prompt, given = prompt.cut(prompt.lengths), self._given(given, lengths)
        pieces = self._continue(given, prompt, num_frames, Drawer(sampling, generators))
        parts, device = list(self.modules()), self.device.type
        while True:
            # Left between pieces: whoever consumes them is in none of these modes. Number formats
            # are those of ``decode_with``, whatever surrounds the call.
            with (
                evaluating(self, parts),
                torch.inference_mode(),
                torch.autocast(device, enabled=False),
            ):
                piece = next(pieces, None)
            if piece is None:
                return
            # Cloned outside: an inference tensor could not be learnt from later.
            yield Tokens(piece.ids.clone(), piece.lengths.clone())

    def generate(
        self,
        given: tuple[Tokens, ...],
        prompt: Tokens,
        num_frames: int,
        sampling: Sampling,
        generators: Sequence[torch.Generator],
    ) -> Tokens:
        pieces = list(self.stream(given, prompt, num_frames, sampling, generators))
        if not pieces:
            return Tokens.full(prompt.ids[:, :, :0])
        ids = torch.cat([piece.ids for piece in pieces], dim=2)
        # Only a last piece of a row is short, so the sum of lengths is where its frames end.
        return Tokens(ids, torch.stack([piece.lengths for piece in pieces]).sum(dim=0))

    @abstractmethod
    def _continue(
        self, given: tuple[Tokens, ...], prompt: Tokens, num_frames: int, drawer: Drawer
    ) -> Iterator[Tokens]:
        """New frames in pieces of at least one; each step runs in eval and inference mode.

        A row that ended has pieces of length 0 from then on.
        """

    def _check(
        self, given: Sequence[Tokens], lengths: Tensor, sampling: Sampling, generators: int
    ) -> None:
        place = f"stage {self.stage.name!r}"
        if generators != len(lengths):
            problem = f"{generators} random generators for {len(lengths)} rows"
            raise GenerationError(place, problem, "pass one generator per row")
        self.check_sampling(sampling)
        for index, (spec, tokens) in enumerate(zip(self.stage.given, given, strict=True)):
            needed = self.stage.given_frames(index, lengths)
            short = (tokens.lengths < needed).nonzero()
            if len(short):
                row = int(short[0])
                raise GenerationError(
                    place,
                    f"row {row} holds {int(tokens.lengths[row])} frames of {spec}, "
                    f"but {int(needed[row])} are needed",
                    "generate or pass that many frames of it first",
                )

    def check_sampling(self, sampling: Sampling) -> None:
        place = f"stages.{self.stage.name}.sampling"
        if self.autoregressive and sampling.iterations is not None:
            raise GenerationError(
                f"{place}.iterations",
                "is for models that fill masks; this one draws each token once",
                "leave it out",
            )
        if sampling.guidance == 1.0:
            return
        if not self.stage.given:
            problem = f"is {sampling.guidance:g}, but the stage is given nothing"
            raise GenerationError(f"{place}.guidance", problem, "leave it at 1")
        if not self.config.condition_dropout:
            raise GenerationError(
                f"{place}.guidance",
                f"is {sampling.guidance:g}, but the model was trained without condition_dropout",
                "leave it at 1, or train with lm.options.condition_dropout=0.1",
            )


class TransformerStageLM(ConditionedStageLM):
    """A stage model that predicts from left to right, knows the likelihood of a target and how to
    continue one."""

    config: SequenceOptions

    def __init__(self, config: SequenceOptions, stage: StageSpec, width: int) -> None:
        """``width``: D of the hidden states that predict a frame."""
        super().__init__(config, stage)
        self.end_head: nn.Linear | None = None
        if not config.end_of_audio:
            return
        if stage.given:
            raise ConfigError(
                f"stages.{stage.name}.lm.options.end_of_audio",
                f"is on, but the stage is given {', '.join(map(str, stage.given))}",
                "turn it on in the first stage only: later ones are as long as what they are given",
            )
        self.end_head = nn.Linear(width, 1)

    def decode_with(self, decoding: Decoding) -> None:
        # Refused now rather than by the first token.
        chosen_backend(decoding, next(self.parameters()), f"stages.{self.stage.name}.decoding")
        super().decode_with(decoding)

    @property
    def unbounded(self) -> bool:
        window = self.config.attention_window if isinstance(self.config, CausalOptions) else None
        return window is not None and not self.stage.given

    @abstractmethod
    def _likelihood(self, given: tuple[Tokens, ...], target: Tokens) -> Likelihood:
        """What the model says of a target of at least one frame."""

    def _end_odds(self, hidden: Float[Tensor, "... D"]) -> Float[Tensor, "..."] | None:
        """Log-odds that the audio ends before the frame that ``hidden`` predicts."""
        return None if self.end_head is None else self.end_head(hidden)[..., 0]

    def _draw_ends(
        self,
        endings: Endings,
        frame: int,
        hidden: Float[Tensor, "R D"],
        prompt: Lengths,
        drawer: Drawer,
    ) -> None:
        """Note the rows that end in place of new frame ``frame``, which ``hidden`` predicts; none
        ends before it has any frame."""
        odds = self._end_odds(hidden)
        if odds is not None:
            pairs = zip(drawer.ends(odds), prompt.tolist(), strict=True)
            endings.note(frame, [end and known + frame > 0 for end, known in pairs])

    def _masked(self, batch: StageBatch) -> Likelihood:
        lengths, width = batch.target.lengths, batch.target.ids.shape[2]
        mask = batch.target.mask[:, None]
        target = Tokens(batch.target.ids.masked_fill(~mask, 0), lengths)
        if width == 0:
            return Likelihood(target.ids.float())
        found = self._likelihood(self._dropped(self._given(batch.given, lengths)), target)
        return Likelihood(found.nll.masked_fill(~mask, 0.0), found.ends)

    def loss(self, batch: StageBatch) -> StageLoss:
        found = self._masked(batch)
        mask = batch.target.mask if batch.counted is None else batch.target.mask & batch.counted
        counted = mask.sum().clamp_min(1)
        per_level = found.nll.masked_fill(~mask[:, None], 0.0).sum(dim=(0, 2)) / counted
        total = per_level.mean()
        if found.ends is not None and batch.ends is not None:
            ends = batch.ends.to(found.ends.dtype)
            terms = functional.binary_cross_entropy_with_logits(found.ends, ends, reduction="none")
            total = total + terms.masked_fill(~mask, 0.0).sum() / counted
        return StageLoss(total, per_level)

    def score(self, batch: StageBatch) -> Float[Tensor, "B Q N"]:
        with evaluating(self), torch.no_grad():
            return -self._masked(batch).nll


class Endings:
    """Where the rows of one call end, and the pieces that are theirs until then.

    Args:
        rows: number of rows.
        num_frames: new frames that are asked for.
    """

    def __init__(self, rows: int, num_frames: int) -> None:
        self._at = [num_frames] * rows

    def note(self, frame: int, drawn: Sequence[bool]) -> None:
        """The rows for which an end was drawn in place of new frame ``frame``."""
        self._at = [min(at, frame) if end else at for at, end in zip(self._at, drawn, strict=True)]

    def reached(self, frames: Sequence[int], like: Tensor) -> Bool[Tensor, "B F"]:
        """Which rows reach each of these new frames; on the device of ``like``."""
        rows = [[frame < at for frame in frames] for at in self._at]
        return torch.tensor(rows, device=like.device)

    def piece(self, frame: int, ids: Ids) -> Tokens:
        """New frame ``frame`` ``[B, Q, 1]``, of those rows that reach it; 0 in others."""
        reached = self.reached([frame], ids).long()
        return Tokens(ids * reached[:, :, None], reached[:, 0])

    def over(self, frame: int) -> bool:
        """Whether no row reaches new frame ``frame``."""
        return all(frame >= at for at in self._at)
