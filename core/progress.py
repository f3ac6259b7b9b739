"""Report the progress of long work. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

#: Called with the name of the work, the number of items done and the number of all items. While
#: audio is generated it is called after every piece, so an exception that it raises stops the work.
Progress = Callable[[str, int, int], None]
#: A callback; True and False show bars or none; None shows them where somebody looks.
ProgressChoice = Progress | bool | None

Item = TypeVar("Item")


def tracked(items: Sequence[Item], name: str, progress: Progress | None) -> Iterator[Item]:
    """Yield the items of long work and report each as done when the next one is asked for."""
    for done, item in enumerate(items, start=1):
        yield item
        if progress is not None:
            progress(name, done, len(items))
