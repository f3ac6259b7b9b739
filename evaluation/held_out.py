"""Which recordings of a data set figures are taken of."""

from __future__ import annotations

from pathlib import Path

from segue.core.errors import DataError
from segue.data.recordings import UNKNOWN, Recording, Split
from segue.data.sources import of_split, read_recordings


def spread_evenly(
    data: Path | str, items: int, split: Split | None, least_seconds: float = 0.0
) -> list[Recording]:
    """Recordings spread evenly over a split, of those that are not known to be too short.

    Args:
        data: as ``read_recordings`` takes it.
        items: most recordings.
        split: None takes all.
        least_seconds: shorter ones are left out.

    Raises:
        DataError: if there is none.
    """
    recordings = read_recordings(data)
    if split is not None:
        recordings = of_split(recordings, split, data)
    long = [
        index
        for index in range(len(recordings) if least_seconds else 0)
        if recordings[index].seconds == UNKNOWN or recordings[index].seconds >= least_seconds
    ]
    if least_seconds and not long:
        raise DataError(str(data), f"no recording lasts {least_seconds:g} s", "ask for less")
    places = long or range(len(recordings))
    count = min(items, len(places))
    return [recordings[places[index * len(places) // count]] for index in range(count)]
