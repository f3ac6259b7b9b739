"""The contract of metrics of continuations: what they get, and what they give back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Continuation:
    """A prompt, what a pipeline made of it, and how the recording really goes on.

    Attributes:
        prompt: ``[T]``, what was continued.
        continuation: ``[T]``, without the prompt.
        truth: ``[T]``, the recording after the prompt, at most as long as was asked for; it may be
            shorter, or hold no sample.
        sample_rate: of all three, samples per second.
        group: speaker or piece: records of other groups are what a metric compares with.
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
        prompt, ours, truth = (
            wave.shape[0] / self.sample_rate
            for wave in (self.prompt, self.continuation, self.truth)
        )
        return prompt, ours, truth


#: A figure of the whole set, given how often each record counts: float weights ``[B]``.
SetFigure = Callable[[Float[Tensor, "B"]], float]


@dataclass(frozen=True)
class Measured:
    """What a metric found.

    Attributes:
        rows: one per record, in their order, all with the same names. NaN where a record leaves
            nothing to measure; a judgement is 0 or 1, so that its mean is a rate.
        overall: figures that only the whole set has, such as a distance of distributions.
    """

    rows: Sequence[Mapping[str, float]]
    overall: Mapping[str, SetFigure] = field(default_factory=dict)


class ContinuationMetric(ABC):
    """Figures of what a pipeline makes of prompts.

    Whatever a metric loads, it loads when it is built, so that a missing package is told before
    any audio is generated.

    Attributes:
        domains: the domains whose audio it is for, such as ``("speech",)``; none: any audio.
        costly: takes longer than the audio lasts, so it is left out unless it is named.
    """

    domains: tuple[str, ...] = ()
    costly: bool = False

    @abstractmethod
    def measure(self, records: Sequence[Continuation]) -> Measured:
        """The figures of at least one record; the set is given whole, as metrics compare a record
        with those of other groups. Intervals are computed by the caller."""


@dataclass(frozen=True)
class Note:
    """A key that sounds from ``start`` to ``end``, in seconds; ``pitch`` is its MIDI number."""

    pitch: int
    start: float
    end: float


def group_numbers(groups: Sequence[str]) -> torch.Tensor:
    """``[B]``: the number of each record's group, in the order in which groups first come."""
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    return torch.tensor([numbers[group] for group in groups])
