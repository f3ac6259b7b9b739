"""Choose the rows of a step's batch that are drawn here: a rank's, or a part of a rank's."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from segue.core.errors import DataError

SEED_STRIDE = 1_000_003


@dataclass(frozen=True)
class Share:
    """Rows ``index``, ``index + count``, ... of each batch.

    A row depends on the seed, the step and its own number alone, so that any number of ranks, and
    any number of pieces that gradients are accumulated over, draw the same batch together.
    """

    index: int = 0
    count: int = 1

    def rows(self, batch_size: int) -> range:
        """Return the numbers of the rows.

        Raises:
            DataError: if the batch cannot be shared evenly.
        """
        if batch_size % self.count:
            raise DataError(
                "training.batch_size",
                f"{batch_size} rows cannot be shared evenly by {self.count} ranks and pieces",
                f"make it a multiple of {self.count}",
            )
        return range(self.index, batch_size, self.count)


WHOLE = Share()


def crop_generators(seed: int, step: int, rows: range, batch_size: int) -> list[torch.Generator]:
    """Return a random generator for each row."""
    random = torch.Generator().manual_seed(seed * SEED_STRIDE + step)
    seeds = torch.randint(2**62, (batch_size,), generator=random).tolist()
    return [torch.Generator().manual_seed(seeds[row]) for row in rows]
