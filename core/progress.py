"""The callback by which long work reports its progress. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable

#: Called with the name of the work, the number of items done and the number of all items.
Progress = Callable[[str, int, int], None]
