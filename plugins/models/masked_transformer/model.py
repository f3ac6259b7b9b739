"""SoundStorm: every frame of a level is drawn in a few passes that look both ways.

Borsos et al., arXiv 2305.09636. Levels go from coarse to fine. Within a level, each pass draws all
masked frames at once and keeps those the model is surest of, as in MaskGIT (Chang et al., arXiv
2202.04200). A stage that predicts all acoustic levels from the semantic stream is SoundStorm
itself; a stage that is given coarse levels predicts the fine ones in the same way.

Shape legend: B rows asked for, R rows computed (more with guidance), Q levels, N frames, M masked
frames, D width, V codebook size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from segue.core.errors import GenerationError
from segue.core.interfaces import Ids, Lengths, StageBatch, StageLM, StageLoss, Tokens
from segue.core.options import Sampling
from segue.core.sampling import sample
from segue.core.spec import StageSpec
from segue.core.two_sided import TwoSided
from segue.plugins.layers.conformer import Conformer
from segue.plugins.layers.drawing import Drawer, StreamCall, generate_from_stream
from segue.plugins.layers.given import GivenEncoder
from segue.plugins.layers.heads import LevelEmbedding, LevelHeads, cross_entropy
from segue.plugins.layers.lengths import length_mask
from segue.plugins.layers.padding import take
from segue.plugins.layers.stage import check_sampling, drop_given, evaluating, given_in_time
from segue.plugins.layers.transformer import Transformer, transformer_blocks
from segue.plugins.models.masked_transformer.config import MaskedTransformerOptions
from segue.plugins.models.masked_transformer.masking import (
    Masking,
    draw_masking,
    masked_after,
    passes_by_level,
)

#: Computes hidden states ``[B, N, D]`` from codes and masks ``[B, Q, N]``.
Pass = Callable[[Ids], Float[Tensor, "B N D"]]


class MaskedTransformer(StageLM, TwoSided):
    """Fills masks in several passes per level.

    A pass multiplies matrices with all frames, so arithmetic limits it, not memory. PyTorch
    computes it whatever the decoding backend, and eight-bit weights would save nothing.
    """

    config: MaskedTransformerOptions
    autoregressive = False
    generate, blocks = generate_from_stream, transformer_blocks

    def __init__(self, config: MaskedTransformerOptions, stage: StageSpec) -> None:
        super().__init__(config, stage)
        target, width = stage.target, config.width
        #: The input id that means "masked"; it is never an output.
        self.mask = target.codebook_size
        self.embedding = LevelEmbedding(target.num_levels, target.codebook_size + 1, width)
        self.given_encoder = GivenEncoder.of(stage, config, width)
        self.transformer = (
            Conformer(config, config.convolution_kernel)
            if config.blocks == "conformer"
            else Transformer(config, causal=False)
        )
        self.heads = LevelHeads(target.num_levels, width, target.codebook_size)

    def check_sampling(self, sampling: Sampling) -> None:
        check_sampling(self, sampling, iterations=True)
        levels, iterations = self.stage.target.num_levels, sampling.iterations or ()
        if len(iterations) > levels:
            raise GenerationError(
                f"stages.{self.stage.name}.sampling.iterations",
                f"names {len(iterations)} levels, but the stage predicts {levels}",
                "name the passes of each level, or of the first few",
            )

    def passes(self, given: tuple[Tokens, ...], lengths: Lengths, frames: int) -> Pass:
        """Return the pass over rows of ``lengths`` frames, padded on the right to ``frames``.

        What all passes share, such as the context of given slices, is computed here, once.
        """
        positions = torch.arange(frames, device=lengths.device)[None].float()
        sight = self.transformer.sight(positions, length_mask(lengths, frames))
        context = self.given_encoder(given, lengths, frames) if self.given_encoder else None

        def compute(ids: Int64[Tensor, "B Q N"]) -> Float[Tensor, "B N D"]:
            rows = (ids.transpose(1, 2) + self.embedding.offsets).flatten(0, 1)
            # Sums over levels without storing an embedding of each.
            x = functional.embedding_bag(rows, self.embedding.table.weight, mode="sum")
            x = x.view(len(ids), frames, -1)
            x = x if context is None else x + context
            return self.transformer(x, sight)

        return compute

    def loss(self, batch: StageBatch) -> StageLoss:
        """Return the mean nats per masked token of the level that each row learns.

        In eval mode the codes of a row seed its masks, so that a validation set always has the same
        masks. A level that no row learns is reported as ``total``.
        """
        target = batch.target.cut(batch.target.lengths)
        width = target.ids.shape[2]
        if width == 0:
            nothing = self.heads.weight.sum() * 0
            return StageLoss(nothing, nothing.detach().expand(target.num_levels))
        dropout = self.config.condition_dropout if self.training else 0.0
        given = drop_given(given_in_time(self.stage, batch.given, target.lengths), dropout)
        masking = self._masking(target)
        hidden = self.passes(given, target.lengths, width)(masking.hide(target.ids, self.mask))
        counted = masking.masked
        if batch.counted is not None:
            counted = counted & batch.counted[:, :width]
        rows, frames = counted.nonzero(as_tuple=True)
        learnt = masking.levels[rows]
        states, codes = hidden[rows, frames], target.ids[rows, learnt, frames]
        sums, counts = [], []
        for level, head in enumerate(self.heads.weight.unbind()):
            mine = learnt == level
            sums.append(cross_entropy(states[mine] @ head, codes[mine]).sum())
            counts.append(mine.sum())
        nll, count = torch.stack(sums), torch.stack(counts)
        total = nll.sum() / count.sum().clamp_min(1)
        return StageLoss(total, torch.where(count > 0, nll / count.clamp_min(1), total))

    def _masking(self, target: Tokens) -> Masking:
        if self.training:
            chance = [None] * len(target.lengths)
            shares, longest = self.config.level_shares, self.config.longest_prompt
            return draw_masking(target, chance, shares, longest)
        # Whatever the options are, so that validation losses can be compared. The seed depends on
        # the row alone, not on the batch it is in.
        seeds = (target.ids.sum(dim=(1, 2)) + target.lengths).tolist()
        return draw_masking(target, [torch.Generator().manual_seed(seed) for seed in seeds])

    def score(self, batch: StageBatch) -> Float[Tensor, "B Q N"]:
        """Return the log-likelihood of every target token when each level is drawn in one pass.

        Level q of all frames is predicted at once, from the levels below it at all frames and from
        what is given, with level q itself and finer levels masked. That is exact for decoding with
        one pass per level, whose probabilities of all targets sum to 1; further passes draw from
        better informed distributions that have no closed form.
        """
        target = batch.target.cut(batch.target.lengths)
        exact = torch.promote_types(self.heads.weight.dtype, torch.float32)
        scores = self.heads.weight.new_zeros(batch.target.ids.shape, dtype=exact)
        width = target.ids.shape[2]
        if width == 0:
            return scores
        with evaluating(self.modules()), torch.no_grad():
            given = given_in_time(self.stage, batch.given, target.lengths)
            compute = self.passes(given, target.lengths, width)
            for level, head in enumerate(self.heads.weight):
                ids = target.ids.clone()
                ids[:, level:] = self.mask
                states = compute(ids)[target.mask]
                nll = cross_entropy(states @ head, target.ids[:, level][target.mask])
                scores[:, level, :width][target.mask] = -nll
        return scores

    def stream(
        self,
        given: tuple[Tokens, ...],
        prompt: Tokens,
        num_frames: int,
        sampling: Sampling,
        generators: Sequence[torch.Generator],
    ) -> Iterator[Tokens]:
        """Yield all frames in one piece, as none is final before all levels of all are drawn.

        A piece without frames follows every pass, so that the consumer can stop between passes.
        """
        nothing = Tokens.full(prompt.ids[:, :, :0])
        return self._fill(given, prompt, num_frames, nothing, sampling, generators)

    def fill(
        self,
        given: tuple[Tokens, ...],
        left: Tokens,
        num_frames: int,
        right: Tokens,
        sampling: Sampling,
        generators: Sequence[torch.Generator],
    ) -> Tokens:
        pieces = list(self._fill(given, left, num_frames, right, sampling, generators))
        return pieces[-1] if pieces else Tokens.full(left.ids[:, :, :0])

    def _fill(
        self,
        given: tuple[Tokens, ...],
        left: Tokens,
        num_frames: int,
        right: Tokens,
        sampling: Sampling,
        generators: Sequence[torch.Generator],
    ) -> Iterator[Tokens]:
        """Yield a piece without frames after every pass, then the frames between two known sides.

        A finer level of the right side is hidden until it is drawn: in training too, only a prompt
        at the start of a row is known at levels finer than the one to be learnt.
        """
        call = StreamCall(self, given, left, num_frames, sampling, generators, right.lengths)
        if call.empty:
            return
        if self.device.type == "cpu" and len(left.lengths) > 1:
            yield from self._one_by_one(given, left, num_frames, right, sampling, generators)
            return
        target, drawer, rows = self.stage.target, call.drawer, len(left.lengths)
        left, right = left.cut(left.lengths), right.cut(right.lengths)
        stops = left.lengths + num_frames
        lengths = stops + right.lengths
        longest = int(lengths.max())
        ids = left.ids.new_full((rows, target.num_levels, longest), self.mask)
        known = left.ids.masked_fill(~left.mask[:, None], self.mask)
        ids[:, :, : known.shape[2]] = known
        # All rows have the same number of new frames, so no row waits for another.
        row = torch.arange(rows, device=ids.device)[:, None]
        new = left.lengths[:, None] + torch.arange(num_frames, device=ids.device)
        where, frame = right.mask.nonzero(as_tuple=True)
        with call.computing():
            compute = self.passes(call.given, drawer.per_row(lengths), longest)
            passes = passes_by_level(sampling.iterations, target.num_levels, target.start)
        for level, count in enumerate(passes):
            # A level of the right side is shown when its turn comes, as codes after a prompt are in
            # training.
            ids[where, level, stops[where] + frame] = right.ids[where, level, frame]
            masked = new
            for left_over in masked_after(num_frames, count):
                with call.computing():
                    hidden = take(compute(drawer.per_row(ids)), drawer.per_row(masked))
                    logits = drawer.guide(hidden @ self.heads.weight[level])
                    drawn, confidence = self._draw(logits, left_over / num_frames, drawer)
                    # Keep the surest, draw the others again in the next pass.
                    order = confidence.argsort(dim=1, descending=True, stable=True)
                    kept, rest = order.split([order.shape[1] - left_over, left_over], dim=1)
                    ids[row, level, take(masked, kept)] = take(drawn, kept)
                    masked = take(masked, rest.sort(dim=1).values)
                yield Tokens.full(left.ids[:, :, :0])
        yield Tokens.full(take(ids.transpose(1, 2), new).transpose(1, 2))

    def _one_by_one(
        self,
        given: tuple[Tokens, ...],
        left: Tokens,
        num_frames: int,
        right: Tokens,
        sampling: Sampling,
        generators: Sequence[torch.Generator],
    ) -> Iterator[Tokens]:
        """Fill the rows in turn: on a CPU that costs nothing, and padding need not be computed."""
        rows = []
        for row, generator in enumerate(generators):
            before, after, *own = (Tokens.full(t.row(row)[None]) for t in (left, right, *given))
            pieces = self._fill(tuple(own), before, num_frames, after, sampling, [generator])
            for piece in pieces:
                if piece.ids.shape[2]:
                    rows.append(piece.ids)
                else:
                    yield Tokens.full(left.ids[:, :, :0])
        yield Tokens.full(torch.cat(rows))

    def _draw(
        self, logits: Float[Tensor, "B M V"], left: float, drawer: Drawer
    ) -> tuple[Int64[Tensor, "B M"], Float[Tensor, "B M"]]:
        """Return a token for every masked frame, and how sure the model is of each.

        Args:
            logits: of masked frames only: a known frame has no confidence to be kept by.
            left: share of frames that stay masked after this pass.
        """
        batch, masked, _ = logits.shape
        sampling = drawer.sampling
        if left == 0 and self.config.greedy_last_pass:
            sampling = sampling.model_copy(update={"temperature": 0.0})
        drawn = sample(logits.flatten(0, 1), sampling, drawer.generators).view(batch, masked)
        # Confidence is that of the plain distribution: temperature must not reorder it.
        likely = logits.float().log_softmax(dim=-1).gather(-1, drawn[:, :, None])[:, :, 0]
        scale = self.config.confidence_noise * left
        if not (scale and sampling.temperature):
            return drawn, likely
        noise = torch.stack(
            [torch.rand(masked, generator=g, device=g.device) for g in drawer.generators]
        )
        # Noise that fades over the passes keeps the surest frames from always being the same ones.
        gumbel = -torch.log(-torch.log(noise.clamp(1e-20, 1 - 1e-7)))
        return drawn, likely + scale * gumbel.to(likely.device)
