"""Specify every hook that a plugin can implement. Imports no torch.

A plugin is a module (or object) with functions decorated by ``segue.core.hookspecs.hookimpl``,
named by an entry point in the group ``segue.plugins`` or under ``hooks:`` in a registry file.
``segue_register`` returns records of strings; all other hooks are called with live objects, in the
order of registration (pluggy's ``tryfirst``, ``trylast`` and wrappers apply), and return nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

from segue.core.records import PluginRecord

if TYPE_CHECKING:
    from segue.inference.pipeline import Pipeline
    from segue.inference.request import GeneratedAudio, GenerationRequest

PROJECT = "segue"
ENTRY_POINT_GROUP = "segue.plugins"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def segue_register() -> Sequence[PluginRecord]:  # type: ignore[empty-body]
    """Return the records of everything that the plugin offers, of any kind.

    Called once, when plugins are first asked for. Import no torch on the way here.
    """


@hookspec(warn_on_impl=DeprecationWarning("implement segue_register: it takes all kinds"))
def _register_one_kind() -> Sequence[PluginRecord]:  # type: ignore[empty-body]
    """Return records of one kind."""


#: Hooks of earlier versions, accepted for one version more: one hook for each kind.
segue_register_semantic_tokenizers = _register_one_kind
segue_register_codecs = _register_one_kind
segue_register_stage_lms = _register_one_kind
segue_register_domains = _register_one_kind
segue_register_metrics = _register_one_kind
segue_register_continuation_metrics = _register_one_kind
segue_register_detectors = _register_one_kind


@hookspec
def segue_pipeline_assembled(pipeline: Pipeline) -> None:
    """Act on a pipeline that was assembled, with its weights loaded."""


@hookspec
def segue_before_generate(pipeline: Pipeline, request: GenerationRequest) -> None:
    """Look at a request before any token is drawn; raise a ``SegueError`` to refuse it."""


@hookspec
def segue_after_generate(
    pipeline: Pipeline, request: GenerationRequest, audio: GeneratedAudio
) -> None:
    """Look at or change generated audio before anyone gets it.

    Assign ``audio.wave`` to change what is returned (a watermark), or add to ``audio.metadata``.
    Each implementation sees the changes of those before it; while streaming, chunk by chunk.
    """


@hookspec
def segue_train_step(part: str, step: int, losses: Mapping[str, float]) -> None:
    """Act after each optimisation step of a part (``codec``, ``stages.fine``)."""


@hookspec
def segue_train_logged(part: str, step: int, directory: Path, figures: Mapping[str, float]) -> None:
    """Act when training writes to its log: losses, validation losses, throughput, memory.

    ``directory`` is the one that the part is trained in: a logger keeps its files there.
    """


@hookspec
def segue_validation_audio(
    part: str, step: int, directory: Path, sample_rate: int, audio: Mapping[str, Any]
) -> None:
    """Act on audio ``[B, T]`` (on the CPU) that a validation made.

    For a codec, ``audio`` holds ``recording`` and ``reconstruction``. For a stage whose levels can
    be decoded, alone or with those it is given: ``reconstruction`` is held-out tokens, decoded;
    ``continuation`` is their first half and the stage's continuation of it.
    """


@hookspec
def segue_checkpoint_saved(part: str, directory: Path, step: int) -> None:
    """Act when a checkpoint directory is complete on disk."""


@hookspec
def segue_output_written(path: Path, metadata: Mapping[str, Any]) -> None:
    """Act on an audio file that the command line wrote, for example to stamp it."""
