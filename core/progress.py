"""Report the progress of long work. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable

#: Called with the name of the work, the number of items done and the number of all items. While
#: audio is generated it is called after every piece, so an exception that it raises stops the work.
Progress = Callable[[str, int, int], None]
#: A callback; True and False show bars or none; None shows them where somebody looks.
ProgressChoice = Progress | bool | None
