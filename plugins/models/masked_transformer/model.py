"""SoundStorm: every frame of a level is drawn in a few passes that look both ways.

Borsos et al., arXiv 2305.09636. Levels go from coarse to fine; within a level, passes draw all
masked frames at once and keep those that the model is surest of, as in MaskGIT (Chang et al.,
arXiv 2202.04200). A stage that is given the semantic stream and predicts every acoustic level is
SoundStorm itself; a stage that is given coarse levels predicts the fine ones the same way.

Shape legend: B rows, R rows that are computed (B, or 2 B with guidance), Q levels, N frames, M
masked frames, D width, V codebook size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from segue.core.errors import GenerationError
from segue.core.interfaces import Ids, Lengths, StageBatch, StageLoss, Tokens
from segue.core.options import Sampling
from segue.core.sampling import sample
from segue.core.spec import StageSpec
from segue.plugins.layers.conformer import Conformer
from segue.plugins.layers.decoding import take
from segue.plugins.layers.drawing import Drawer
from segue.plugins.layers.given import GivenEncoder
from segue.plugins.layers.heads import LevelEmbedding, LevelHeads, nats_of
from segue.plugins.layers.stage import ConditionedStageLM, evaluating
from segue.plugins.layers.transformer import Sight, Transformer
from segue.plugins.models.masked_transformer.config import MaskedTransformerOptions
from segue.plugins.models.masked_transformer.masking import (
    Masking,
    draw_masking,
    known_frames,
    known_levels,
    row_seeds,
)
from segue.plugins.models.masked_transformer.schedule import masked_after, passes_by_level


@dataclass(frozen=True)
class Surroundings:
    """What stays the same in all passes over a batch.

    Attributes:
        context: ``[B, N, D]`` of the given slices; None if nothing is given.
        sight: frames of the row itself, and no padding.
    """

    context: Float[Tensor, "B N D"] | None
    sight: Sight


def nats(
    hidden: Float[Tensor, "M D"], head: Float[Tensor, "D V"], ids: Int64[Tensor, " M"]
) -> Float[Tensor, " M"]:
    """Negative log-likelihood of every id."""
    return nats_of(hidden @ head, ids)


class MaskedTransformer(ConditionedStageLM):
    """Fills masks in several passes per level; with nothing given it makes something up.

    A pass is a product of matrices with all frames, bound by arithmetic: PyTorch computes it
    whatever the decoding backend, and eight-bit weights, which save reading, are not made.
    """

    config: MaskedTransformerOptions
    autoregressive = False

    def __init__(self, config: MaskedTransformerOptions, stage: StageSpec) -> None:
        super().__init__(config, stage)
        target, width = stage.target, config.width
        #: The id that stands for "masked" in the input; it is never an output.
        self.mask = target.codebook_size
        self.embedding = LevelEmbedding(target.num_levels, target.codebook_size + 1, width)
        self.given_encoder = GivenEncoder.of(stage, config)
        self.transformer = (
            Conformer(config, config.convolution_kernel)
            if config.blocks == "conformer"
            else Transformer(config, causal=False)
        )
        self.heads = LevelHeads(target.num_levels, width, target.codebook_size)

    def _surroundings(
        self, given: tuple[Tokens, ...], lengths: Lengths, count: int
    ) -> Surroundings:
        """Of rows of ``lengths`` frames, padded on the right to ``count``."""
        frames = torch.arange(count, device=lengths.device)
        sight = self.transformer.sight(frames[None].float(), frames < lengths[:, None])
        encoder = self.given_encoder
        return Surroundings(encoder(given, lengths, count) if encoder else None, sight)

    def _pass(self, ids: Int64[Tensor, "B Q N"], around: Surroundings) -> Float[Tensor, "B N D"]:
        """Hidden state of every frame, from its codes and masks and those of all others."""
        batch, levels, frames = ids.shape
        rows = (ids.transpose(1, 2) + self.embedding.offsets).reshape(batch * frames, levels)
        # Sums over levels without an embedding of each.
        x = functional.embedding_bag(rows, self.embedding.table.weight, mode="sum")
        x = x.view(batch, frames, -1)
        if around.context is not None:
            x = x + around.context
        return self.transformer(x, around.sight)  # type: ignore[no-any-return]

    def loss(self, batch: StageBatch) -> StageLoss:
        """Mean nats per masked token of the level that each row happens to learn.

        In eval mode a row's own codes seed what is masked of it, so that a validation set is
        always masked in the same way. A level that no row learns is reported as ``total``.
        """
        target = batch.target.cut(batch.target.lengths)
        width = target.ids.shape[2]
        if width == 0:
            nothing = self.heads.weight.sum() * 0
            return StageLoss(nothing, nothing.detach().expand(target.num_levels))
        given = self._dropped(self._given(batch.given, target.lengths))
        masking = self._masking(target)
        around = self._surroundings(given, target.lengths, width)
        hidden = self._pass(masking.hide(target.ids, self.mask), around)
        counted = masking.masked
        if batch.counted is not None:
            counted = counted & batch.counted[:, :width]
        rows, frames = counted.nonzero(as_tuple=True)
        learnt = masking.levels[rows]
        states, codes = hidden[rows, frames], target.ids[rows, learnt, frames]
        sums, counts = [], []
        for level, head in enumerate(self.heads.weight.unbind()):
            mine = learnt == level
            sums.append(nats(states[mine], head, codes[mine]).sum())
            counts.append(mine.sum())
        nll, count = torch.stack(sums), torch.stack(counts)
        total = nll.sum() / count.sum().clamp_min(1)
        return StageLoss(total, torch.where(count > 0, nll / count.clamp_min(1), total))

    def _masking(self, target: Tokens) -> Masking:
        """In eval mode whatever the options are, so that their losses can be compared."""
        if self.training:
            chance = [None] * len(target.lengths)
            shares, longest = self.config.level_shares, self.config.longest_prompt
            return draw_masking(target, chance, shares, longest)
        return draw_masking(
            target, [torch.Generator().manual_seed(seed) for seed in row_seeds(target)]
        )

    def score(self, batch: StageBatch) -> Float[Tensor, "B Q N"]:
        """Log-likelihood of every target token when each level is drawn in one pass.

        Level q of all frames is predicted at once, from the levels below it at all frames and from
        what is given, with level q itself and finer levels masked. That is exact for decoding with
        one pass per level, whose probabilities of all targets sum to 1; further passes draw from
        better informed distributions that have no closed form.
        """
        target = batch.target.cut(batch.target.lengths)
        scores = self.heads.weight.new_zeros(batch.target.ids.shape)
        width = target.ids.shape[2]
        if width == 0:
            return scores
        with evaluating(self), torch.no_grad():
            given = self._given(batch.given, target.lengths)
            around = self._surroundings(given, target.lengths, width)
            for level, head in enumerate(self.heads.weight):
                hidden = self._pass(known_levels(target, level, self.mask), around)
                nll = nats(hidden[target.mask], head, target.ids[:, level][target.mask])
                scores[:, level, :width][target.mask] = -nll
        return scores

    def check_sampling(self, sampling: Sampling) -> None:
        super().check_sampling(sampling)
        levels, asked = self.stage.target.num_levels, sampling.iterations or ()
        if len(asked) > levels:
            raise GenerationError(
                f"stages.{self.stage.name}.sampling.iterations",
                f"names {len(asked)} levels, but the stage predicts {levels}",
                "name the passes of each level, or of the first few",
            )

    def _continue(
        self, given: tuple[Tokens, ...], prompt: Tokens, num_frames: int, drawer: Drawer
    ) -> Iterator[Tokens]:
        lengths, target = prompt.lengths + num_frames, self.stage.target
        ids = known_frames(prompt, lengths, self.mask)
        around = self._surroundings(drawer.given_rows(given), drawer.per_row(lengths), ids.shape[2])
        new = prompt.lengths[:, None] + torch.arange(num_frames, device=ids.device)
        asked = drawer.sampling.iterations
        for level, passes in enumerate(passes_by_level(asked, target.num_levels, target.start)):
            self._fill(ids, level, new, passes, around, drawer)
        yield Tokens.full(take(ids.transpose(1, 2), new).transpose(1, 2))

    def _fill(
        self,
        ids: Ids,
        level: int,
        masked: Int64[Tensor, "B M"],
        passes: int,
        around: Surroundings,
        drawer: Drawer,
    ) -> None:
        """Write the level's codes into ``ids`` at the frames ``masked``, each exactly once.

        Every row has as many masked frames as any other, so no row waits for another.
        """
        frames, rows = masked.shape[1], torch.arange(len(masked), device=masked.device)[:, None]
        for left in masked_after(frames, passes):
            hidden = self._pass(drawer.per_row(ids), around)
            logits = take(hidden, drawer.per_row(masked)) @ self.heads.weight[level]
            drawn, confidence = self._draw(drawer.guide(logits), left / frames, drawer)
            order = confidence.argsort(dim=1, descending=True, stable=True)
            kept, rest = order.split([masked.shape[1] - left, left], dim=1)
            ids[rows, level, take(masked, kept)] = take(drawn, kept)
            masked = take(masked, rest.sort(dim=1).values)

    def _draw(
        self, logits: Float[Tensor, "B M V"], left: float, drawer: Drawer
    ) -> tuple[Int64[Tensor, "B M"], Float[Tensor, "B M"]]:
        """A token for every masked frame, and how sure the model is of each.

        Args:
            logits: of masked frames only, so that a known one has no confidence to be kept by.
            left: share of frames that stay masked after this pass.
        """
        batch, masked, _ = logits.shape
        sampling = drawer.sampling
        if left == 0 and self.config.greedy_last_pass:
            sampling = sampling.model_copy(update={"temperature": 0.0})
        generators = [g for g in drawer.generators for _ in range(masked)]
        drawn = sample(logits.flatten(0, 1), sampling, generators).view(batch, masked)
        likely = logits.float().log_softmax(dim=-1).gather(-1, drawn[:, :, None])[:, :, 0]
        scale = self.config.confidence_noise * left
        if not (scale and sampling.temperature):
            return drawn, likely
        noise = torch.stack([torch.rand(masked, generator=g) for g in drawer.generators])
        gumbel = -torch.log(-torch.log(noise.clamp(1e-20, 1 - 1e-7)))
        return drawn, likely + scale * gumbel.to(likely.device)
