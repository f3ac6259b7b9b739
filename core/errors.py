"""Errors a user can act on: each names the place, the problem and the fix."""

from __future__ import annotations


class SegueError(Exception):
    """Base of every error that Segue raises on purpose.

    Args:
        place: the value or file at fault: ``stages.coarse.lm.options.depht``, ``prompt.wav``.
        problem: what is wrong with it, with the offending value.
        fix: what the user can do about it.
    """

    def __init__(self, place: str, problem: str, fix: str) -> None:
        super().__init__(place, problem, fix)
        self.place = place
        self.problem = problem
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.place}: {self.problem}; {self.fix}"


class ConfigError(SegueError):
    """A configuration value that cannot be used."""


class PluginError(SegueError):
    """A plugin that cannot be found, loaded or chosen."""


class AssemblyError(SegueError):
    """Parts of a pipeline that do not fit together."""


class UntrainedError(AssemblyError):
    """A part that must be trained before a pipeline can run."""


class AudioError(SegueError):
    """Audio that cannot be read or used."""


class DataError(SegueError):
    """A data set, manifest or token store that cannot be used."""


class CheckpointError(SegueError):
    """A checkpoint that is missing, incomplete, altered or from another format."""


class OutputError(SegueError):
    """A result that cannot be written."""


class TrainingError(SegueError):
    """Training that cannot start or go on."""


class DivergedError(TrainingError):
    """Training whose losses stay non-finite or that stays in trouble."""


class GenerationError(SegueError):
    """A request for audio that cannot be met."""
