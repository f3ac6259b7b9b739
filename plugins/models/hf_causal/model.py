"""A stage model around any causal language model of Hugging Face.

All tokens lie in one sequence, as in AudioLM's own stages (Borsos et al., arXiv 2209.03143,
section III-C). Starting from a text model is what TWIST does for speech (Hassid et al., arXiv
2305.13009): the layers are warm, the audio tokens new.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from segue.core.errors import ConfigError
from segue.core.interfaces import Tokens
from segue.core.options import Decoding
from segue.core.spec import StageSpec
from segue.plugins.models.common.decoding import take
from segue.plugins.models.common.drawing import Drawer
from segue.plugins.models.common.heads import LevelHeads
from segue.plugins.models.common.stage import Endings, Likelihood, TransformerStageLM
from segue.plugins.models.hf_causal.backbone import CachedSequence
from segue.plugins.models.hf_causal.config import HfCausalOptions
from segue.plugins.models.hf_causal.source import open_backbone
from segue.plugins.models.hf_causal.tokens import AudioTokens


class HfCausalLM(TransformerStageLM):
    """One token per step; the input at target position j is token j - 1, or a learnt start."""

    config: HfCausalOptions

    def __init__(self, config: HfCausalOptions, stage: StageSpec) -> None:
        backbone, kept, text = open_backbone(config, f"stages.{stage.name}.lm.options")
        super().__init__(kept, stage, backbone.width_out)
        self.backbone = backbone
        self.tokens = AudioTokens(stage, backbone.width_in)
        if text is not None:
            self.tokens.resemble(text)
        target = stage.target
        self.heads = LevelHeads(target.num_levels, backbone.width_out, target.codebook_size)

    def decode_with(self, decoding: Decoding) -> None:
        place = f"stages.{self.stage.name}.decoding"
        if decoding.backend not in ("auto", "torch"):
            problem = f"is {decoding.backend}, but layers of transformers run through torch"
            raise ConfigError(f"{place}.backend", problem, "use auto")
        if decoding.weights == "int8":
            problem = "is int8, which layers of transformers have no kernel for"
            raise ConfigError(f"{place}.weights", problem, "use stored, bfloat16 or float16")
        self.decoding = decoding
        if decoding.weights != "stored":
            # Not ``self.to``: the frequencies of rotary positions are buffers, and halves of them
            # would turn far positions by other angles.
            for parameter in self.parameters():
                parameter.data = parameter.data.to(getattr(torch, decoding.weights))

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

    def _likelihood(self, given: tuple[Tokens, ...], target: Tokens) -> Likelihood:
        _, levels, frames = target.ids.shape
        x, valid = self.tokens(given, target, left=False)
        self._check_length(x.shape[1])
        hidden = self.backbone(x)
        start = valid.sum(dim=1) - 1 - levels * target.lengths
        # One more than there are tokens: the last input predicts whether the audio ends. What a
        # short row takes from beyond its end is padding and masked by the caller.
        index = start[:, None] + torch.arange(frames * levels + 1, device=start.device)
        hidden = take(hidden, index.clamp_max(hidden.shape[1] - 1))
        by_level = hidden[:, :-1].unflatten(1, (frames, levels))
        ends = self._end_odds(hidden[:, levels::levels])
        return Likelihood(self.heads.nll(by_level, target.ids), ends)

    def _continue(
        self, given: tuple[Tokens, ...], prompt: Tokens, num_frames: int, drawer: Drawer
    ) -> Iterator[Tokens]:
        levels = self.stage.target.num_levels
        x, valid = self.tokens(drawer.given_rows(given), drawer.rows(prompt), left=True)
        steps = num_frames * levels - 1
        self._check_length(x.shape[1] + steps)
        sequence = CachedSequence(self.backbone, x, valid, steps)
        endings = Endings(len(prompt.lengths), num_frames)
        token = None
        for frame in range(num_frames):
            drawn = []
            for level in range(levels):
                if token is not None:
                    sequence.step(self.tokens.step(drawer.per_row(token), level - 1))
                if level == 0:
                    self._draw_ends(endings, frame, sequence.hidden, prompt.lengths, drawer)
                    if endings.over(frame):
                        return
                token = drawer.draw(sequence.hidden @ self.heads.weight[level])
                drawn.append(token)
            yield endings.piece(frame, torch.stack(drawn, dim=1)[:, :, None])
