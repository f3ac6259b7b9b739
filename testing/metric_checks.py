"""Check the promises of every metric that compares audio with a reference."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from segue.core.interfaces import Metric
from segue.inference.promises import check_figure
from segue.testing.check import NotApplicable, made, require
from segue.testing.compare import a_day_later, unchanged, undisturbed
from segue.testing.subject import Subject
from segue.testing.synthetic import speech_like

RATE = 16_000


def speech(seconds: float = 2.0, rate: int = RATE, seed: int = 0) -> Tensor:
    return _speech(seconds, rate, seed).clone()


@cache  # synthesised once for all checks
def _speech(seconds: float, rate: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return speech_like(round(seconds * rate), rate, generator)


def noisy(wave: Tensor) -> Tensor:
    """Return audio with noise as loud as itself."""
    noise = torch.randn(wave.shape, generator=torch.Generator().manual_seed(1))
    return (wave + noise * wave.square().mean().sqrt()).clamp(-1, 1)


def same(one: float, other: float, atol: float = 1e-6) -> bool:
    """Return whether two figures are equal; NaN equals NaN."""
    if math.isnan(one) or math.isnan(other):
        return math.isnan(one) and math.isnan(other)
    return one == other or abs(one - other) <= atol * max(1.0, abs(one))


def _figure(metric: Metric, reference: Tensor, audio: Tensor, rate: int = RATE) -> float:
    return check_figure(metric, metric(reference, audio, rate))


def check_attributes_describe_it(subject: Subject) -> None:
    """Check that unit, direction, cost and domains are of their types."""
    metric = made(subject, Metric)
    require(isinstance(metric.unit, str), f"unit is {metric.unit!r}, not text")
    for name in ("higher_is_better", "costly"):
        value = getattr(metric, name)
        require(isinstance(value, bool), f"{name} is {value!r}, not True or False")
    domains = metric.domains
    texts = isinstance(domains, tuple) and all(isinstance(one, str) for one in domains)
    require(texts, f"domains is {domains!r}, not a tuple of names")


def check_returns_a_number(subject: Subject) -> None:
    """Check that a pair of any usual rate has one number, and is not written to."""
    metric = made(subject, Metric)
    for rate in (RATE, 24_000):
        reference = speech(rate=rate)
        audio = noisy(reference)
        with unchanged(reference=reference, audio=audio):
            _figure(metric, reference, audio, rate)


def check_damage_is_no_improvement(subject: Subject) -> None:
    """Check that noise as loud as the audio has no better figure than the reference itself."""
    metric, reference = made(subject, Metric), speech()
    best, worse = (_figure(metric, reference, audio) for audio in (reference, noisy(reference)))
    gain = (worse - best) * (1 if metric.higher_is_better else -1)
    direction = f"higher_is_better = {metric.higher_is_better}"
    require(not gain > 1e-6, f"the reference has {best:g}, noise {worse:g}, but {direction}")


def check_silence_has_the_worst_figure(subject: Subject) -> None:
    """Check that silence in place of the audio has a figure, and no better one than noise."""
    metric, reference = made(subject, Metric), speech()
    if math.isnan(_figure(metric, reference, reference)):
        raise NotApplicable("synthetic speech leaves it nothing to measure")
    figures = [
        _figure(metric, reference, audio) for audio in (torch.zeros_like(reference), reference)
    ]
    require(not math.isnan(figures[0]), "silence has the figure NaN, as if it were not measured")
    gain = (figures[0] - figures[1]) * (1 if metric.higher_is_better else -1)
    require(not gain > 1e-6, f"silence has {figures[0]:g}, the reference itself {figures[1]:g}")


def check_takes_any_reference(subject: Subject) -> None:
    """Check that a silent or very short reference has a number or NaN, not an exception."""
    metric, reference = made(subject, Metric), speech()
    _figure(metric, torch.zeros_like(reference), reference)
    for samples in (1, 100):
        _figure(metric, reference[:samples], noisy(reference)[:samples])


def check_is_deterministic(subject: Subject) -> None:
    """Check that a pair has the same figure each time, whatever was measured before."""
    metric, reference = made(subject, Metric), speech()
    first = _figure(metric, reference, noisy(reference))
    for number in range(3):
        torch.manual_seed(number)
        with a_day_later(metric):
            again = _figure(metric, reference, noisy(reference))
        require(same(again, first), f"the figure was {first:g}, and is {again:g} the next time")
        _figure(metric, reference, speech(seed=5))


def check_leaves_the_process_alone(subject: Subject) -> None:
    """Check that building and measuring change no seed or mode of the whole process."""
    with undisturbed():
        subject.blank()
    metric, reference = made(subject, Metric), speech()
    with undisturbed():
        metric(reference, reference, RATE)
