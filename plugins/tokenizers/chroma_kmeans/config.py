"""Options of the chroma k-means tokenizer. Imports no torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from segue.plugins.tokenizers.common.options import KMeansOptions, check_window


class ChromaKMeansOptions(KMeansOptions):
    """Configure ``chroma_kmeans``.

    Attributes:
        pitch_window: samples of the window for pitches.
        onset_window: samples of the window for onsets and loudness.
        lowest_note: MIDI number of the lowest note that counts.
        highest_note: MIDI number of the highest note that counts.
        chroma: ``split`` in bass and treble, which shows octaves better; or ``centred``: one chroma
            of all notes, without the mean of its classes, which shows pitch classes better and
            ignores noise.
        split_note: for ``split``: notes below it make the bass chroma, the others the treble one.
        onset_weight: how much onset strength counts, where each pitch class counts 1.
        loudness_weight: how much loudness counts.
        height_weight: how much the mean pitch counts, which distinguishes octaves.
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
    def _check_sizes(self) -> ChromaKMeansOptions:
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
        """Leave out ``chroma`` where it is split: older fingerprints do not know it."""
        unused = "chroma" if self.chroma == "split" else "split_note"
        return {key: value for key, value in super().identity().items() if key != unused}

    @property
    def num_classes(self) -> int:
        """Return the number of features that are pitch classes."""
        return 12 if self.chroma == "centred" else 24
