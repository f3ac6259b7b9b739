"""What a pipeline's first stage finds likely.

The first stage is the one that is given nothing: the semantic stage, or the acoustic one of a
pipeline without semantic tokens.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from segue.core.audio import Audio, prepare
from segue.core.config.schema import StageConfig
from segue.core.errors import ConfigError
from segue.core.interfaces import StageBatch, StageLM, Tokens
from segue.core.pipeline import Pipeline

LEAST_SECONDS = 0.1


class FirstStage:
    """The stage that is given nothing, and the tokens that it predicts.

    Raises:
        ConfigError: if a pipeline has none.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        found = next((stage for stage in pipeline.config.stages if not stage.given), None)
        if found is None:
            raise ConfigError("stages", "each is given something", "name another pipeline")
        self._pipeline = pipeline
        self.config: StageConfig = found
        self.lm: StageLM = pipeline.stage_lm(found.name)

    def tokens(self, audio: Audio) -> Int64[Tensor, "Q N"]:
        """What the stage would learn from that audio, all of it.

        Raises:
            AudioError: if it holds nothing that could be taken.
        """
        transcoder, target = self._pipeline.audio, self.lm.stage.target
        ready = prepare(
            audio, transcoder.sample_rate, min_seconds=LEAST_SECONDS, max_seconds=math.inf,
            place="recording",
        )  # fmt: skip
        tokens = transcoder.encode_stream(target.stream, [ready], transcoder.gains([ready]))
        return tokens.levels(target.start, target.stop).row(0)

    @torch.inference_mode()
    def score(self, ids: Int64[Tensor, "Q N"]) -> Float[Tensor, "N"]:
        """Log-likelihood in nats of each frame, given those before it."""
        batch = StageBatch(Tokens.full(ids[None])).to(self._pipeline.device)
        return self.lm.score(batch)[0].sum(0).double().cpu()


def preferred(right: float, wrong: float) -> float:
    """1 if the first is likelier, 0 if the second is, one half if neither."""
    return 0.5 if right == wrong else float(right > wrong)
