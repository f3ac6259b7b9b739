"""Every hook a plugin can implement. Imports no torch.

A plugin is a module (or object) with functions decorated by ``segue.core.hookspecs.hookimpl``,
named by an entry point in the group ``segue.plugins`` or under ``hooks:`` in a registry file.
Registering hooks return records of strings; lifecycle hooks are called with live objects, in the
order of registration (pluggy's ``tryfirst`` and ``trylast`` apply).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

from segue.core.records import PluginRecord

if TYPE_CHECKING:
    from segue.core.pipeline import Pipeline
    from segue.core.request import GeneratedAudio, GenerationRequest

PROJECT = "segue"
ENTRY_POINT_GROUP = "segue.plugins"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def segue_register_semantic_tokenizers() -> Sequence[PluginRecord]:  # type: ignore[empty-body]
    """Called when the plugin is activated. Return records of kind ``semantic_tokenizer``."""


@hookspec
def segue_register_codecs() -> Sequence[PluginRecord]:  # type: ignore[empty-body]
    """Called when the plugin is activated. Return records of kind ``codec``."""


@hookspec
def segue_register_stage_lms() -> Sequence[PluginRecord]:  # type: ignore[empty-body]
    """Called when the plugin is activated. Return records of kind ``stage_lm``."""


@hookspec
def segue_register_domains() -> Sequence[PluginRecord]:  # type: ignore[empty-body]
    """Called when the plugin is activated. Return records of kind ``domain``."""


@hookspec
def segue_register_metrics() -> Sequence[PluginRecord]:  # type: ignore[empty-body]
    """Called when the plugin is activated. Return records of kind ``metric``."""


@hookspec
def segue_register_continuation_metrics() -> Sequence[PluginRecord]:  # type: ignore[empty-body]
    """Called when the plugin is activated. Return records of kind ``continuation_metric``."""


@hookspec
def segue_register_detectors() -> Sequence[PluginRecord]:  # type: ignore[empty-body]
    """Called when the plugin is activated. Return records of kind ``detector``."""


@hookspec
def segue_pipeline_assembled(pipeline: Pipeline) -> None:
    """Called once a pipeline was assembled and its weights are loaded. Return nothing."""


@hookspec
def segue_before_generate(pipeline: Pipeline, request: GenerationRequest) -> None:
    """Called before any token is drawn. Raise a ``SegueError`` to refuse; return nothing."""


@hookspec
def segue_after_generate(
    pipeline: Pipeline, request: GenerationRequest, audio: GeneratedAudio
) -> None:
    """Called when audio was generated and before anyone gets it.

    Assign ``audio.wave`` to change what is returned (a watermark), or add to ``audio.metadata``.
    Each implementation sees the changes of those before it. While streaming it is called for each
    chunk on its own. Return nothing.
    """


@hookspec
def segue_train_step(part: str, step: int, losses: Mapping[str, float]) -> None:
    """Called after each optimisation step of a part (``codec``, ``stages.fine``).

    Return nothing.
    """


@hookspec
def segue_train_logged(part: str, step: int, directory: Path, figures: Mapping[str, float]) -> None:
    """Called when a training writes to its log: losses, validation losses, throughput, memory.

    ``directory`` is where the part is trained: a logger keeps its files there. Return nothing.
    """


@hookspec
def segue_validation_audio(
    part: str, step: int, directory: Path, sample_rate: int, audio: Mapping[str, Any]
) -> None:
    """Called when a codec was validated, with waves ``[B, T]`` on the CPU under ``recording`` and
    ``reconstruction``.

    Also when a stage was whose levels sound by themselves or with those that it is given: held-out
    tokens, decoded, are ``reconstruction``; their first half and what the stage makes of it are
    ``continuation``. Return nothing.
    """


@hookspec
def segue_checkpoint_saved(part: str, directory: Path, step: int) -> None:
    """Called when a checkpoint directory is complete on disk. Return nothing."""


@hookspec
def segue_output_written(path: Path, metadata: Mapping[str, Any]) -> None:
    """Called when an audio file was written by the command line; may stamp it. Return nothing."""
