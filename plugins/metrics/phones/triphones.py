"""Cut phones with their neighbours for ABX (Schatz et al., 2013; arXiv 1912.07875)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

LONGEST_PHONE = 0.4  # seconds; what lasts longer holds a pause


@dataclass(frozen=True)
class Phone:
    """A phone and when it is heard, in seconds; it lasts until the next one begins."""

    label: str
    start: float
    end: float


def triphones(phones: Sequence[Phone]) -> Iterator[tuple[Phone, str]]:
    """Yield each phone from the start of the one before to the end of the one after, with these two
    as its context; none across a gap between words or with a pause in it."""
    for before, here, after in zip(phones, phones[1:], phones[2:], strict=False):
        three = (before, here, after)
        joined = before.end == here.start and here.end == after.start
        if joined and all(0 < phone.end - phone.start <= LONGEST_PHONE for phone in three):
            whole = Phone(here.label, before.start, after.end)
            yield whole, f"{before.label} {after.label}"
