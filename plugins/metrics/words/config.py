"""Options of metrics of words. Imports no torch."""

from __future__ import annotations

from pydantic import Field

from segue.core.options import Options


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
