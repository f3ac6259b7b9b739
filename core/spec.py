"""Describe token streams, slices of them, and what a stage predicts from what. Imports no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, TypeVar

from segue.core.errors import ConfigError

SEMANTIC = "semantic"
ACOUSTIC = "acoustic"
STREAMS = (SEMANTIC, ACOUSTIC)
MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 1000, 768_000  # Hz, of audio that is read
LOUDEST = 10.0  # peak above which samples cannot be sound: full scale is 1, coding adds a little

Spec = TypeVar("Spec", bound="_WithFrameRate")

_RATE = re.compile(r"\d{1,9}(/\d{1,9})?")
_SLICE = re.compile(r"^(?P<stream>[a-z_]+)(\[(?P<start>\d+):(?P<stop>\d+)\])?$")


class _WithFrameRate:
    """Written to JSON field by field, the frame rate as ``50`` or ``25/2``."""

    frame_rate: Fraction

    def to_json(self) -> dict[str, Any]:
        return vars(self) | {"frame_rate": str(self.frame_rate)}

    @classmethod
    def from_json(cls: type[Spec], data: Mapping[str, Any]) -> Spec:
        rate = data["frame_rate"]
        if not _RATE.fullmatch(rate):  # Fraction("1e999999999") would compute for years
            raise ValueError(f"{rate[:20]!r} is not a frame rate")
        return cls(**{**data, "frame_rate": Fraction(rate)})


@dataclass(frozen=True)
class TokenSpec(_WithFrameRate):
    """The shape and meaning of the tokens that one tokenizer emits.

    Attributes:
        sample_rate: samples per second of the audio that is encoded.
        frame_rate: frames per second; ``sample_rate / frame_rate`` is a whole number.
        num_levels: Q, tokens per frame.
        codebook_size: V, every id lies in ``[0, V)``.
        fingerprint: hash of everything that determines what a token means; empty until the
            tokenizer has its weights.
    """

    sample_rate: int
    frame_rate: Fraction
    num_levels: int
    codebook_size: int
    fingerprint: str = ""

    @property
    def frame_size(self) -> int:
        """Samples per frame."""
        size = Fraction(self.sample_rate) / self.frame_rate
        if size.denominator != 1:
            raise ConfigError(
                "frame_rate",
                f"{self.frame_rate} Hz does not divide the sample rate {self.sample_rate} Hz",
                "choose a frame rate that divides the sample rate",
            )
        return int(size)

    def num_frames(self, num_samples: int) -> int:
        """Return the frames emitted for ``num_samples`` samples; the last, partial one counts."""
        return -(-num_samples // self.frame_size)  # rounded up

    def with_fingerprint(self, fingerprint: str) -> TokenSpec:
        return replace(self, fingerprint=fingerprint)


@dataclass(frozen=True)
class StreamSlice:
    """Some levels of a token stream, as written in a config: ``semantic``, ``acoustic[0:4]``.

    ``stop`` is None for all levels.
    """

    stream: str
    start: int = 0
    stop: int | None = None

    @classmethod
    def parse(cls, text: str, place: str = "stream slice") -> StreamSlice:
        """Read ``semantic``, ``acoustic`` or ``acoustic[0:4]``, or raise ``ConfigError``."""
        match = _SLICE.match(text.replace(" ", ""))
        if match is None or match["stream"] not in STREAMS:
            raise ConfigError(
                place,
                f"{text!r} is not a stream slice",
                "write 'semantic', 'acoustic' or a range of levels such as 'acoustic[0:4]'",
            )
        if match["start"] is None:
            return cls(match["stream"])
        start, stop = int(match["start"]), int(match["stop"])
        if start >= stop:
            raise ConfigError(
                place, f"{text!r} holds no level", "make the second number larger than the first"
            )
        return cls(match["stream"], start, stop)

    def __str__(self) -> str:
        return self.stream if self.stop is None else f"{self.stream}[{self.start}:{self.stop}]"


@dataclass(frozen=True)
class SliceSpec(_WithFrameRate):
    """A stream slice bound to the tokenizer that emits it: levels ``start .. stop - 1``."""

    stream: str
    start: int
    stop: int
    codebook_size: int
    frame_rate: Fraction
    fingerprint: str = ""

    @property
    def num_levels(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        return f"{self.stream}[{self.start}:{self.stop}]"


@dataclass(frozen=True)
class StageSpec:
    """The slice that one stage predicts, and the slices it is given."""

    name: str
    target: SliceSpec
    given: tuple[SliceSpec, ...] = ()

    def frames_per_target_frame(self, index: int) -> Fraction:
        """Return the frames of ``given[index]`` that pass in one frame of the target."""
        return self.given[index].frame_rate / self.target.frame_rate

    def given_frames(self, index: int, frames: Any) -> Any:
        """Return the frames of ``given[index]`` that pass in ``frames`` target frames.

        The last, partial frame counts. ``frames`` is a number or an integer tensor.
        """
        rate = self.frames_per_target_frame(index)
        return -(-frames * rate.numerator // rate.denominator)  # rounded up

    @property
    def alignment(self) -> int:
        """Fewest target frames that are a whole number of frames of every given slice."""
        # Assembly admits only ratios n or 1/n, so the largest denominator serves all of them.
        steps = (self.frames_per_target_frame(i).denominator for i in range(len(self.given)))
        return max(steps, default=1)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "target": self.target.to_json(),
            "given": [given.to_json() for given in self.given],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> StageSpec:
        return cls(
            data["name"],
            SliceSpec.from_json(data["target"]),
            tuple(SliceSpec.from_json(given) for given in data["given"]),
        )


def common_samples(specs: Sequence[TokenSpec], rate: int) -> int:
    """Return the samples at ``rate`` after which every stream has a whole number of frames."""
    # Periods in samples; fractions, as `rate` need not be the stream's own.
    periods = [rate / spec.frame_rate for spec in specs]
    return math.lcm(*(period.numerator for period in periods))
