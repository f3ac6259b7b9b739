"""Options of metrics. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from segue.core.options import Options


class FrechetOptions(Options):
    """Options of ``frechet``.

    Attributes:
        embedding: ``mel`` takes mean and deviation of 32 log-mel bands, which needs no model and
            says what sound is like on the whole; ``yamnet`` the 1024 numbers of YAMNet, a
            classifier of sounds, which needs ``segue[yamnet]`` for LiteRT.
        weights: of YAMNet, a tflite file.
    """

    embedding: Literal["mel", "yamnet"] = "mel"
    weights: str = ""

    @model_validator(mode="after")
    def _yamnet_has_weights(self) -> FrechetOptions:
        if (self.embedding == "yamnet") != bool(self.weights):
            raise ValueError("weights go with embedding=yamnet, which needs them")
        return self


class NotesOptions(Options):
    """Options of ``notes``.

    Attributes:
        model: a Basic Pitch model as ONNX; empty takes the one inside the installed package.
        onset: probability from which a note begins.
        frame: probability down to which it sounds.
    """

    model: str = ""
    onset: float = Field(default=0.5, gt=0, lt=1)
    frame: float = Field(default=0.3, gt=0, lt=1)


class NoteAccuracyOptions(NotesOptions):
    """Options of ``note_accuracy``.

    Attributes:
        compare: ``notes`` are right if pitch and onset are, ``onsets`` if the onset is.
        tolerance: seconds by which the onset of a right note may differ.
    """

    compare: Literal["notes", "onsets"] = "notes"
    tolerance: float = Field(default=0.05, gt=0, le=1)


class VisqolOptions(Options):
    """Options of ``visqol``.

    Attributes:
        mode: ``speech`` compares at 16 kHz, ``audio`` (for music) at 48 kHz; a score says
            something beside others of the same mode only.
        lattice: in speech mode, map similarity to opinion by the deep lattice network that ViSQOL
            3.3 brought, which needs ``visqol-python[lattice]``, instead of the polynomial.
    """

    mode: Literal["speech", "audio"] = "speech"
    lattice: bool = False


class WordErrorOptions(Options):
    """Options of ``word_error``.

    Attributes:
        weights: folder of a Whisper model in CTranslate2's format, as faster-whisper takes it;
            empty takes Whisper base from the packages of ``segue[asr]``.
        beam: hypotheses that the recogniser follows.
    """

    weights: str = ""
    beam: int = Field(default=5, ge=1)


class AgreementOptions(WordErrorOptions):
    """Options of ``agreement``.

    Attributes:
        other_weights: folder of a second model; empty takes Whisper tiny.en from ``segue[asr]``.
    """

    other_weights: str = ""
