"""A stage model around any causal language model of Hugging Face.

All tokens lie in one sequence, as in ``flat_transformer``. Starting from a text model is what TWIST
does for speech (Hassid et al., arXiv 2305.13009): the layers are pretrained, the audio tokens new.

Shape legend: B rows asked for, R rows computed (more with guidance), Q levels, N frames, L columns
of the sequence, D width, V size of the text vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from segue.core.errors import ConfigError
from segue.core.interfaces import StageLM, Tokens
from segue.core.options import Decoding
from segue.core.spec import StageSpec
from segue.plugins.layers.decoding import HeadProducts
from segue.plugins.layers.drawing import StreamCall, generate_from_stream, stream_frames
from segue.plugins.layers.guided import guided_loss
from segue.plugins.layers.heads import LevelEmbedding, LevelHeads
from segue.plugins.layers.stage import (
    States,
    causal_loss,
    causal_score,
    check_sampling,
    make_end_head,
)
from segue.plugins.layers.transformer import INIT_STD
from segue.plugins.models.flat_transformer.model import (
    flatten,
    frames_by_token,
    packed,
    target_states,
)
from segue.plugins.models.hf_causal.backbone import CachedSequence
from segue.plugins.models.hf_causal.config import HfCausalOptions
from segue.plugins.models.hf_causal.source import open_backbone


class AudioTokens(nn.Module):
    """Embeddings in place of text: a start, a separator per given slice, and all codes by level."""

    def __init__(self, stage: StageSpec, width: int) -> None:
        super().__init__()
        self.given = nn.ModuleList(
            LevelEmbedding(given.num_levels, given.codebook_size, width) for given in stage.given
        )
        self.separators = nn.ParameterList(
            nn.Parameter(torch.randn(width) * INIT_STD) for _ in stage.given
        )
        self.target = LevelEmbedding(stage.target.num_levels, stage.target.codebook_size, width)
        self.start = nn.Parameter(torch.randn(width) * INIT_STD)

    @torch.no_grad()
    def resemble(self, rows: Float[Tensor, "V D"]) -> None:
        """Redraw all embeddings with the mean and deviation of ``rows`` in each channel.

        A pretrained backbone then sees inputs of the size it was trained with.
        """
        mean, deviation = rows.mean(dim=0), rows.std(dim=0)
        for parameter in self.parameters():
            parameter.copy_(mean + deviation * torch.randn_like(parameter))

    def forward(
        self, given: tuple[Tokens, ...], target: Tokens, left: bool
    ) -> tuple[Float[Tensor, "B L D"], Bool[Tensor, "B L"]]:
        """Embed given slices and target, padded on one side, as wide as the longest row.

        Returns:
            Embeddings and where they are valid.
        """
        leads, tables = (*self.separators, self.start), (*self.given, self.target)
        parts = [flatten(*part) for part in zip(tables, leads, (*given, target), strict=True)]
        x, valid = (torch.cat(columns, dim=1) for columns in zip(*parts, strict=True))
        return packed((x, valid), left, narrow=True)


class HfCausalLM(StageLM):
    """The layers of a language model, with audio tokens in place of text."""

    config: HfCausalOptions
    loss, score, guided_loss = causal_loss, causal_score, guided_loss
    generate, stream = generate_from_stream, stream_frames
    check_sampling = check_sampling

    def __init__(self, config: HfCausalOptions, stage: StageSpec) -> None:
        backbone, kept, text = open_backbone(config, f"stages.{stage.name}.lm.options")
        super().__init__(kept, stage)
        target = stage.target
        self.end_head = make_end_head(kept, stage, backbone.width_out)
        self.backbone = backbone
        self.tokens = AudioTokens(stage, backbone.width_in)
        if text is not None:
            self.tokens.resemble(text)
        self.heads = LevelHeads(target.num_levels, backbone.width_out, target.codebook_size)

    def decode_with(self, decoding: Decoding) -> None:
        place = f"stages.{self.stage.name}.decoding"
        if decoding.backend not in ("auto", "torch"):
            problem = f"is {decoding.backend}, but layers of transformers run through torch"
            raise ConfigError(f"{place}.backend", problem, "use auto")
        if decoding.weights == "int8":
            problem = "is int8, which layers of transformers have no kernel for"
            raise ConfigError(f"{place}.weights", problem, "use stored, bfloat16 or float16")
        super().decode_with(decoding)

    def _check_length(self, positions: int) -> None:
        limit = self.backbone.limit
        if limit is None or positions <= limit:
            return
        source = "pretrained" if self.config.architecture is None else "architecture"
        raise ConfigError(
            f"stages.{self.stage.name}.lm.options.{source}",
            f"max_position_embeddings is {limit}, but a sequence takes {positions} positions",
            "shorten the stage's crop_seconds, or the prompt and what is to be generated; or train "
            "an architecture with more",
        )

    def forward(self, given: tuple[Tokens, ...], target: Tokens) -> States:
        """Return the state that predicts every target token, all in one pass."""
        x, valid = self.tokens(given, target, left=False)
        self._check_length(x.shape[1])
        start = valid.sum(dim=1) - 1 - target.num_levels * target.lengths
        return target_states(self.backbone(x), start, target, self.end_head)

    def frames(self, call: StreamCall, num_frames: int) -> Iterator[Int64[Tensor, "B Q"]]:
        """Draw frames, each token in a step of its own."""
        steps = num_frames * self.stage.target.num_levels - 1  # the last token is never read
        x, valid = self.tokens(call.given, call.prompt, left=True)
        self._check_length(x.shape[1] + steps)
        sequence = CachedSequence(self.backbone, x, valid, steps)
        products = HeadProducts(self.heads, self.heads.weight, self.decoding)
        table, end_head = self.tokens.target, self.end_head
        return frames_by_token(call, num_frames, sequence, table, products, end_head)
