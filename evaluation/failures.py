"""Ask metrics for figures; one that fails is named and takes no other figures with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from jaxtyping import Float
from torch import Tensor

from segue.core.discovery import described, distribution_of
from segue.core.errors import SegueError
from segue.core.interfaces import Metric
from segue.inference.promises import check_figure

#: Name of a metric -> why it failed. A metric that failed once is not asked again.
Failures = dict[str, str]


@contextmanager
def noted(name: str, metric: object, failed: Failures) -> Iterator[None]:
    """Note an exception of the block as the failure of a metric, instead of raising it."""
    try:
        yield
    except SegueError as error:
        failed[name] = str(error)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit, or a panic of compiled code
        kind = type(metric)
        owner, _ = distribution_of(kind)
        failed[name] = f"{described(error, kind.__module__)}; report it to {owner}"


def figures_of_pair(
    metrics: Mapping[str, Metric],
    reference: Float[Tensor, "T"],
    audio: Float[Tensor, "T"],
    sample_rate: int,
    failed: Failures,
) -> dict[str, float]:
    """Return the figure of every metric that has not failed."""
    found = {}
    for name, metric in metrics.items():
        if name not in failed:
            with noted(name, metric, failed):
                pair = (reference.clone(), audio.clone())  # it may write to them
                found[name] = check_figure(metric, metric(*pair, sample_rate))
    return found


def without(rows: list[dict[str, float]], failed: Failures) -> list[dict[str, float]]:
    """Take the figures of metrics that failed later out of rows."""
    return [{name: row[name] for name in row if name not in failed} for row in rows]
