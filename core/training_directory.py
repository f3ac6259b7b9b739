"""The checkpoints that `segue train` left in a part's directory. Imports no torch."""

from __future__ import annotations

from pathlib import Path

STATE_JSON = "trainer.json"
FITTED = "-fitted"  # ends the names of checkpoints that were fitted after training


def checkpoints(directory: Path) -> list[Path]:
    """The complete checkpoints in a part's directory, by step."""
    return sorted(path for path in directory.glob("step-*") if (path / STATE_JSON).is_file())


def newest_checkpoint(directory: Path, fitted: bool = True) -> Path | None:
    """The complete checkpoint of the highest step in a part's directory, if any.

    Args:
        fitted: also of those that were fitted after they had been trained.
    """
    found = checkpoints(directory) if fitted else trained_checkpoints(directory)
    return found[-1] if found else None


def trained_checkpoints(directory: Path) -> list[Path]:
    """The complete checkpoints that training can go on from, by step."""
    return [path for path in checkpoints(directory) if not path.name.endswith(FITTED)]


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint is of."""
    return int(checkpoint.name.removesuffix(FITTED).removeprefix("step-"))
