"""A stage model around any causal language model of Hugging Face.

All tokens lie in one sequence, as in AudioLM's own stages (Borsos et al., arXiv 2209.03143,
section III-C). Starting from a text model is what TWIST does for speech (Hassid et al., arXiv
2305.13009): the layers are warm, the audio tokens new.
"""

from __future__ import annotations

from jaxtyping import Float, Int64
from torch import Tensor

from segue.core.errors import ConfigError
from segue.core.interfaces import Tokens
from segue.core.options import Decoding
from segue.core.spec import StageSpec
from segue.plugins.layers.drawing import Drawer
from segue.plugins.layers.flattened import FlattenedStageLM, Stepper
from segue.plugins.layers.heads import LevelHeads
from segue.plugins.layers.stage import Likelihood
from segue.plugins.models.hf_causal.backbone import CachedSequence
from segue.plugins.models.hf_causal.config import HfCausalOptions
from segue.plugins.models.hf_causal.source import open_backbone
from segue.plugins.models.hf_causal.tokens import AudioTokens


class HfCausalLM(FlattenedStageLM):
    """The layers of a language model, with audio tokens in place of text."""

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

    def _likelihood(self, given: tuple[Tokens, ...], target: Tokens) -> Likelihood:
        x, valid = self.tokens(given, target, left=False)
        self._check_length(x.shape[1])
        start = valid.sum(dim=1) - 1 - target.num_levels * target.lengths
        return self._read(self.backbone(x), start, target)

    def _begin(
        self, given: tuple[Tokens, ...], prompt: Tokens, steps: int, drawer: Drawer
    ) -> Stepper:
        x, valid = self.tokens(drawer.given_rows(given), drawer.rows(prompt), left=True)
        self._check_length(x.shape[1] + steps)
        return CachedSequence(self.backbone, x, valid, steps)

    def _embed_token(self, ids: Int64[Tensor, " R"], level: int) -> Float[Tensor, "R D"]:
        return self.tokens.step(ids, level)
