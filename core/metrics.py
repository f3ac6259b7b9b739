"""The contract of metrics that judge a set of continuations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Continuation:
    """A prompt, a pipeline's continuation of it, and the recording's own continuation.

    Attributes:
        prompt: ``[T]``.
        continuation: ``[T]``, without the prompt.
        truth: ``[T]``, the recording after the prompt; at most as long as was asked for, or empty.
        sample_rate: samples per second of all three.
        group: speaker or piece; metrics compare a record with records of other groups.
        place: the recording, as messages name it.
    """

    prompt: Float[Tensor, "T"]
    continuation: Float[Tensor, "T"]
    truth: Float[Tensor, "T"]
    sample_rate: int
    group: str
    place: str = ""

    @property
    def seconds(self) -> tuple[float, float, float]:
        """Lengths of the prompt, the continuation and the truth."""
        waves = (self.prompt, self.continuation, self.truth)
        prompt, ours, truth = (wave.shape[0] / self.sample_rate for wave in waves)
        return prompt, ours, truth


#: A figure of the whole set, given how often each record counts: float weights ``[B]``.
SetFigure = Callable[[Float[Tensor, "B"]], float]


@dataclass(frozen=True)
class Measured:
    """The figures that a metric found.

    Attributes:
        rows: one per record, in their order, all with the same names. NaN where a record leaves
            nothing to measure; a judgement is 0 or 1, so that its mean is a rate.
        overall: figures that only the whole set has, such as a distance of distributions.
    """

    rows: Sequence[Mapping[str, float]]
    overall: Mapping[str, SetFigure] = field(default_factory=dict)


class ContinuationMetric(ABC):
    """Measure continuations.

    Load models in the constructor: a missing package is reported before audio is generated.

    Attributes:
        domains: domains it is made for, such as ``("speech",)``; empty for any audio.
        costly: takes longer than the audio lasts, so it runs only if it is named.
    """

    domains: tuple[str, ...] = ()
    costly: bool = False

    @abstractmethod
    def measure(self, records: Sequence[Continuation]) -> Measured:
        """Return the figures of at least one record; the caller computes intervals.

        All records come at once, as metrics compare a record with those of other groups.
        """


@dataclass(frozen=True)
class Note:
    """A key that sounds from ``start`` to ``end``, in seconds; ``pitch`` is its MIDI number."""

    pitch: int
    start: float
    end: float


def group_numbers(groups: Sequence[str]) -> torch.Tensor:
    """Return ``[B]``, the number of each record's group, in order of first appearance."""
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    return torch.tensor([numbers[group] for group in groups])
