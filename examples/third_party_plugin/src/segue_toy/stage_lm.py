"""A recurrent network over frames that predicts all levels of the next frame at once."""

from collections.abc import Sequence

from torch import Generator, Tensor, arange, nn, no_grad, stack

from segue.core.interfaces import StageBatch, StageLM, StageLoss, Tokens
from segue.core.options import Sampling
from segue.core.sampling import sample
from segue.core.spec import StageSpec
from segue_toy.stage_lm_config import GruOptions


class GruStageLM(StageLM):
    def __init__(self, config: GruOptions, stage: StageSpec) -> None:
        super().__init__(config, stage)
        self.sizes = [s.num_levels * s.codebook_size for s in (stage.target, *stage.given)]
        self.tables = nn.ModuleList(nn.Embedding(size, config.width) for size in self.sizes)
        self.gru = nn.GRU(config.width, config.width, batch_first=True)
        self.head = nn.Linear(config.width, self.sizes[0])

    def states(self, *streams: Tokens) -> Tensor:
        """[B, N, D] that predict each frame of the first stream; the others are given."""
        x: Tensor | float = 0.0
        for index, (size, tokens) in enumerate(zip(self.sizes, streams, strict=True)):
            rows = arange(0, size, size // tokens.num_levels, device=self.device)[:, None]
            frames = nn.functional.pad(self.tables[index](tokens.ids + rows).sum(1), (0, 0, 1, 0))
            rate = self.stage.frames_per_target_frame(index - 1) if index else 1
            at = (int(n * rate) + (index > 0) for n in range(streams[0].ids.shape[2]))
            x = x + frames[:, [min(n, tokens.ids.shape[2]) for n in at]]
        return self.gru(x)[0]  # type: ignore[no-any-return]

    def score(self, batch: StageBatch) -> Tensor:
        ids, states = batch.target.ids, self.states(batch.target, *batch.given)
        told: Tensor = self.head(states).unflatten(2, (ids.shape[1], -1)).log_softmax(dim=-1)
        return told.transpose(1, 2).gather(3, ids[..., None])[..., 0] * batch.target.mask[:, None]

    def loss(self, batch: StageBatch) -> StageLoss:
        counted = batch.target.mask if batch.counted is None else batch.target.mask & batch.counted
        per_level = -(self.score(batch) * counted[:, None]).sum(dim=(0, 2)) / counted.sum()
        return StageLoss(per_level.mean(), per_level)

    @no_grad()
    def generate(self, given: tuple[Tokens, ...], prompt: Tokens, num_frames: int,
                 sampling: Sampling, generators: Sequence[Generator]) -> Tokens:  # fmt: skip
        rows, ids = range(len(prompt.lengths)), nn.functional.pad(prompt.ids, (0, num_frames))
        for at in prompt.lengths + arange(num_frames, device=self.device)[:, None]:
            told = self.head(self.states(Tokens.full(ids), *given)[rows, at]).chunk(ids.shape[1], 1)
            ids[rows, :, at] = stack([sample(x, sampling, generators) for x in told], dim=1)
        return Tokens.stack([ids[b, :, n : n + num_frames] for b, n in enumerate(prompt.lengths)])
