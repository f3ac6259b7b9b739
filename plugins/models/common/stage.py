"""What the transformer stage models share: loss, score and the frame of generation."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction

import torch
from jaxtyping import Float
from torch import Tensor, nn

from segue.core.errors import GenerationError
from segue.core.interfaces import Ids, Lengths, StageBatch, StageLM, StageLoss, Tokens
from segue.core.options import Sampling


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode for the duration; every submodule gets its own mode back."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def frames_needed(lengths: Lengths, rate: Fraction) -> Lengths:
    """Given frames that cover ``lengths`` target frames, the last, partial one included."""
    return -(-lengths * rate.numerator // rate.denominator)


def trim(tokens: Tokens, lengths: Lengths) -> Tokens:
    """At most ``lengths`` frames of each row; padding is set to 0 and cut to the longest row."""
    kept = torch.minimum(tokens.lengths, lengths)
    longest = int(kept.max()) if len(kept) else 0
    cut = Tokens(tokens.ids[:, :, :longest], kept)
    return Tokens(cut.ids.masked_fill(~cut.mask[:, None], 0), kept)


class TransformerStageLM(StageLM):
    """A stage model that knows the likelihood of a target and how to continue one."""

    @abstractmethod
    def _nll(self, given: tuple[Tokens, ...], target: Tokens) -> Float[Tensor, "B Q N"]:
        """Negative log-likelihood of every target id; anything at padding."""

    @abstractmethod
    def _continue(
        self,
        given: tuple[Tokens, ...],
        prompt: Tokens,
        num_frames: int,
        sampling: Sampling,
        generators: Sequence[torch.Generator],
    ) -> Ids:
        """``[B, Q, num_frames]`` new frames, at least one; called in eval and inference mode."""

    def _given(self, given: tuple[Tokens, ...], lengths: Lengths) -> tuple[Tokens, ...]:
        """The given frames that pass during ``lengths`` target frames, and no later ones: what
        is scored and learnt from is what generation sees."""
        rates = (self.stage.frames_per_target_frame(i) for i in range(len(self.stage.given)))
        pairs = zip(given, rates, strict=True)
        return tuple(trim(tokens, frames_needed(lengths, rate)) for tokens, rate in pairs)

    def _masked_nll(self, batch: StageBatch) -> Float[Tensor, "B Q N"]:
        lengths, width = batch.target.lengths, batch.target.ids.shape[2]
        mask = batch.target.mask[:, None]
        target = Tokens(batch.target.ids.masked_fill(~mask, 0), lengths)
        if width == 0:
            return target.ids.float()
        return self._nll(self._given(batch.given, lengths), target).masked_fill(~mask, 0.0)

    def loss(self, batch: StageBatch) -> StageLoss:
        nll = self._masked_nll(batch)
        frames = batch.target.lengths.sum().clamp_min(1)
        per_level = nll.sum(dim=(0, 2)) / frames
        return StageLoss(per_level.mean(), per_level)

    def score(self, batch: StageBatch) -> Float[Tensor, "B Q N"]:
        with evaluating(self), torch.no_grad():
            return -self._masked_nll(batch)

    def generate(
        self,
        given: tuple[Tokens, ...],
        prompt: Tokens,
        num_frames: int,
        sampling: Sampling,
        generators: Sequence[torch.Generator],
    ) -> Tokens:
        lengths = prompt.lengths + num_frames
        self._check(given, lengths, len(generators))
        if num_frames <= 0 or len(lengths) == 0:
            return Tokens.full(prompt.ids[:, :, :0])
        with evaluating(self), torch.inference_mode():
            prompt = trim(prompt, prompt.lengths)
            given = self._given(given, lengths)
            ids = self._continue(given, prompt, num_frames, sampling, generators)
        # Cloned outside: an inference tensor could not be learnt from later.
        return Tokens.full(ids.clone())

    def _check(self, given: Sequence[Tokens], lengths: Tensor, generators: int) -> None:
        place = f"stage {self.stage.name!r}"
        if generators != len(lengths):
            problem = f"{generators} random generators for {len(lengths)} rows"
            raise GenerationError(place, problem, "pass one generator per row")
        for index, (spec, tokens) in enumerate(zip(self.stage.given, given, strict=True)):
            needed = frames_needed(lengths, self.stage.frames_per_target_frame(index))
            short = (tokens.lengths < needed).nonzero()
            if len(short):
                row = int(short[0])
                raise GenerationError(
                    place,
                    f"row {row} holds {int(tokens.lengths[row])} frames of {spec}, "
                    f"but {int(needed[row])} are needed",
                    "generate or pass that many frames of it first",
                )
