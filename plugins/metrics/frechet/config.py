"""Options of the Fréchet audio distance. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from segue.core.options import Options


class FrechetOptions(Options):
    """Options of ``frechet``.

    Attributes:
        embedding: ``mel`` takes mean and deviation of 32 log-mel bands, which needs no model and
            says what sound is like on the whole; ``yamnet`` the 1024 numbers of YAMNet, a
            classifier of sounds, which needs ``segue[lyra]`` for LiteRT.
        weights: of YAMNet, a tflite file.
    """

    embedding: Literal["mel", "yamnet"] = "mel"
    weights: str = ""

    @model_validator(mode="after")
    def _yamnet_has_weights(self) -> FrechetOptions:
        if (self.embedding == "yamnet") != bool(self.weights):
            raise ValueError("weights go with embedding=yamnet, which needs them")
        return self
