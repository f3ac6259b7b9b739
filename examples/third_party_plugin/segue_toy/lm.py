"""A recurrent stage model: a frame's levels are drawn independently given all frames before."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from segue.core.interfaces import StageBatch, StageLM, StageLoss, Tokens
from segue.core.sampling import sample
from segue.core.spec import StageSpec
from segue_toy.config import GruOptions


class GruLM(StageLM):
    """``toy_gru.v1``."""

    def __init__(self, config: GruOptions, stage: StageSpec) -> None:
        super().__init__(config, stage)
        self.parts, width = (stage.target, *stage.given), config.width
        sizes = [part.num_levels * part.codebook_size for part in self.parts]
        self.tables = nn.ModuleList(nn.Embedding(size, width) for size in sizes)
        self.start = nn.Parameter(torch.zeros(width))
        self.gru = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, sizes[0])

    def embed(self, index: int, ids: Tensor) -> Tensor:
        levels = torch.arange(ids.shape[1], device=ids.device)[:, None]
        return self.tables[index](ids + levels * self.parts[index].codebook_size).sum(1)

    def logits(self, target: Tensor, given: list[Tensor], frames: int) -> Tensor:
        """``[B, frames, Q, V]``: each frame given the frames before it."""
        first = self.start.expand(target.shape[0], 1, -1)
        x = torch.cat([first, self.embed(0, target)], dim=1)[:, :frames]
        for index, ids in enumerate(given):
            ratio = self.stage.frames_per_target_frame(index)
            time = torch.arange(frames, device=ids.device) * ratio.numerator // ratio.denominator
            x = x + self.embed(index + 1, ids)[:, time.clamp_max(ids.shape[2] - 1)]
        return self.head(self.gru(x)[0]).unflatten(-1, (self.stage.target.num_levels, -1))

    def score(self, batch: StageBatch) -> Tensor:
        ids = batch.target.ids
        logits = self.logits(ids, [given.ids for given in batch.given], ids.shape[2])
        scores = logits.log_softmax(-1).gather(-1, ids.transpose(1, 2)[..., None])[..., 0]
        return scores.transpose(1, 2) * batch.target.mask[:, None]

    def loss(self, batch: StageBatch) -> StageLoss:
        per_level = -self.score(batch).sum((0, 2)) / batch.target.lengths.sum().clamp_min(1)
        return StageLoss(per_level.mean(), per_level)

    @torch.no_grad()
    def generate(self, given, prompt, num_frames, sampling, generators) -> Tokens:  # type: ignore[no-untyped-def]
        rows = []
        for row, generator in enumerate(generators):
            known, context = prompt.row(row)[None], [tokens.row(row)[None] for tokens in given]
            for _ in range(num_frames):
                logits = self.logits(known, context, known.shape[2] + 1)[0, -1]
                drawn = sample(logits, sampling, [generator] * len(logits))
                known = torch.cat([known, drawn[None, :, None]], dim=2)
            rows.append(known[0, :, known.shape[2] - num_frames :])
        return Tokens.stack(rows)
