"""Check the promises of every metric that judges a set of continuations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from segue.core.metrics import Continuation, ContinuationMetric, Measured
from segue.inference.promises import check_figure, check_measured
from segue.testing.check import made, require
from segue.testing.compare import a_day_later, unchanged, undisturbed
from segue.testing.metric_checks import RATE, noisy, same, speech
from segue.testing.subject import Subject

_GROUPS = "aabb"
_ATOL = 1e-4


def records_for() -> list[Continuation]:
    """Return two records of each of two groups; the last has no true continuation."""
    found = []
    for index, group in enumerate(_GROUPS):
        wave = speech(4.0, seed=index)
        prompt, truth = wave[: 2 * RATE], wave[2 * RATE :]
        made = noisy(speech(2.0, seed=10 + index))
        found.append(Continuation(prompt, made, truth, RATE, group, f"record {index}"))
    return [*found[:-1], replace(found[-1], truth=found[-1].truth[:0])]


def _measured(metric: ContinuationMetric, records: Sequence[Continuation]) -> Measured:
    return check_measured(metric, metric.measure(records), len(records))


def _require_same_rows(found: Measured, wanted: Measured, what: str) -> None:
    for index, (have, want) in enumerate(zip(found.rows, wanted.rows, strict=True)):
        require(have.keys() == want.keys(), f"{what}: figures {[*have]} instead of {[*want]}")
        for name in want:
            equal = same(have[name], want[name], _ATOL)
            require(equal, f"{what}: {name} of row {index} is {have[name]}, not {want[name]}")


def check_attributes_describe_it(subject: Subject) -> None:
    """Check that cost and domains are of their types."""
    metric = made(subject, ContinuationMetric)
    require(isinstance(metric.costly, bool), f"costly is {metric.costly!r}, not True or False")
    domains = metric.domains
    texts = isinstance(domains, tuple) and all(isinstance(one, str) for one in domains)
    require(texts, f"domains is {domains!r}, not a tuple of names")


def check_gives_a_row_per_record(subject: Subject) -> None:
    """Check that each record has a row of numbers of the same names, and is not written to."""
    metric, records = made(subject, ContinuationMetric), records_for()
    with unchanged(records=tuple(records)):
        _measured(metric, records)


def check_rows_follow_their_records(subject: Subject) -> None:
    """Check that records in another order have the same rows in that order."""
    metric, records = made(subject, ContinuationMetric), records_for()
    found, wanted = _measured(metric, records[::-1]), _measured(metric, records)
    _require_same_rows(Measured(found.rows[::-1]), wanted, "in another order")


def check_figures_of_the_set_take_weights(subject: Subject) -> None:
    """Check that figures of the whole set are numbers, also if a group counts for nothing."""
    metric, records = made(subject, ContinuationMetric), records_for()
    for name, figure in _measured(metric, records).overall.items():
        for weights in ([1.0] * 4, [0.0, 0.0, 1.0, 1.0], [2.0, 2.0, 1.0, 1.0]):
            value = figure(torch.tensor(weights, dtype=torch.float64))
            require(check_figure(metric, value) is not None, f"{name} is not a number")


def check_takes_few_and_silent_records(subject: Subject) -> None:
    """Check that one record alone, and silent continuations, are measured."""
    metric, records = made(subject, ContinuationMetric), records_for()
    _measured(metric, records[:1])
    _measured(
        metric, [replace(one, continuation=torch.zeros_like(one.continuation)) for one in records]
    )


def check_is_deterministic(subject: Subject) -> None:
    """Check that records have the same figures each time, whatever was measured before."""
    metric, records = made(subject, ContinuationMetric), records_for()
    first = _measured(metric, records)
    for number in range(2):
        torch.manual_seed(number)
        with a_day_later(metric):
            _require_same_rows(_measured(metric, records), first, "the next time")


def check_leaves_the_process_alone(subject: Subject) -> None:
    """Check that building and measuring change no seed or mode of the whole process."""
    with undisturbed():
        subject.blank()
    metric, records = made(subject, ContinuationMetric), records_for()
    with undisturbed():
        metric.measure(records)
