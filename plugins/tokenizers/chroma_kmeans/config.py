"""Options of the chroma k-means tokenizer. Imports no torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from segue.plugins.tokenizers.common.options import KMeansOptions, check_window


class ChromaKMeansOptions(KMeansOptions):
    """Options of ``chroma_kmeans``.

    Attributes:
        pitch_window: samples of the window in which pitches are told apart.
        onset_window: samples of the window in which onsets and loudness are measured.
        lowest_note: MIDI number of the lowest note that counts.
        highest_note: MIDI number of the highest note that counts.
        chroma: ``split`` in bass and treble, or one of all notes that is ``centred``: less the mean
            of its classes, so that what sounds everywhere tells little. The latter tells more of
            the pitch classes, the former of octaves.
        split_note: notes below it make the bass chroma, the others the treble chroma, if split.
        onset_weight: how much onset strength counts, where each pitch class counts 1.
        loudness_weight: how much loudness counts.
        height_weight: how much the mean pitch counts, which tells octaves apart.
    """

    subframes: int = Field(default=2, ge=1)
    pitch_window: int = Field(default=4096, ge=4)
    onset_window: int = Field(default=1024, ge=4)
    lowest_note: int = Field(default=36, ge=12, le=127)
    highest_note: int = Field(default=107, ge=12, le=127)
    chroma: Literal["split", "centred"] = "split"
    split_note: int = Field(default=60, ge=12, le=127)
    onset_weight: float = Field(default=1.5, ge=0)
    loudness_weight: float = Field(default=1.0, ge=0)
    height_weight: float = Field(default=1.5, ge=0)

    @model_validator(mode="after")
    def _shapes_fit(self) -> ChromaKMeansOptions:
        check_window("pitch_window", self.pitch_window, self.hop)
        check_window("onset_window", self.onset_window, self.hop)
        if self.chroma == "centred" and self.lowest_note < self.highest_note:
            return self
        if not self.lowest_note < self.split_note <= self.highest_note:
            raise ValueError(
                f"split_note ({self.split_note}) must lie above lowest_note ({self.lowest_note})"
                f" and not above highest_note ({self.highest_note})"
            )
        return self

    def identity(self) -> dict[str, Any]:
        """Chroma are split unless it is said; centred ones are not split."""
        unsaid = "chroma" if self.chroma == "split" else "split_note"
        return {key: value for key, value in super().identity().items() if key != unsaid}

    @property
    def num_classes(self) -> int:
        """Numbers that tell of pitch classes."""
        return 12 if self.chroma == "centred" else 24
