"""Directories that hold one trained component: ``component.json`` and ``model.safetensors``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from segue.core.component_manifest import MANIFEST, WEIGHTS, ComponentManifest, read_manifest
from segue.core.eight_bits import pack, unpack
from segue.core.errors import CheckpointError
from segue.core.files import write_json
from segue.core.interfaces import Component, StageLM, Tokenizer
from segue.core.lora import load_plain, plain_state
from segue.core.records import Kind

if TYPE_CHECKING:
    from segue.core.plugins import PluginHost


def save_component(
    component: Component,
    directory: Path,
    kind: Kind,
    use: str,
    trained: Mapping[str, Any],
    dtype: torch.dtype | None = None,
    state: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write a component into an existing directory; the caller makes that directory atomic.

    Args:
        dtype: store floating-point weights of a stage LM in this type; ``torch.int8`` makes
            eight-bit codes of matrices (``segue.core.eight_bits``). A tokenizer's are never
            changed, as its fingerprint is a hash of them: those that half precision holds exactly
            are stored in it.
        state: the component's state dict, if it was put together from several ranks, or a
            tokenizer's ``token_state``.
    """
    if isinstance(component, Tokenizer):
        component.seal(use)
    found = component.state_dict() if state is None else state
    state = {k: v.detach().cpu().contiguous() for k, v in _plain(component, found).items()}
    if dtype is not None:
        exactly = isinstance(component, Tokenizer)
        state = _halved_exactly(state) if exactly else _converted(state, dtype)
    manifest = ComponentManifest(
        kind,
        use,
        component.config.model_dump(mode="json"),
        spec=component.spec.to_json() if isinstance(component, Tokenizer) else None,
        stage=component.stage.to_json() if isinstance(component, StageLM) else None,
        trained=dict(trained),
    )
    save_tensors(state, directory / WEIGHTS)
    write_json(directory / MANIFEST, asdict(manifest))


def _halved_exactly(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """In half precision whatever that does not change."""
    halves = {k: v.half() for k, v in state.items() if v.is_floating_point()}
    return {
        k: halves[k] if k in halves and torch.equal(halves[k].to(v.dtype), v) else v
        for k, v in state.items()
    }


def _converted(state: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    if dtype == torch.int8:
        return pack(state)
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}


def save_tensors(
    tensors: Mapping[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file.

    Raises:
        OSError: if it cannot be written; ``segue.core.files`` makes an ``OutputError`` of it.
    """
    try:
        save_file(dict(tensors), path, metadata)
    except SafetensorError as error:
        raise OSError(str(error)) from error


def _plain(component: Component, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict without tensors that share storage, which safetensors refuses, and with
    adapters in the weights that they belong to."""
    return {key: value.clone() for key, value in plain_state(component, state).items()}


def load_state(component: Component, directory: Path, use: str) -> None:
    """Load the weights of ``directory`` into a component built from its manifest.

    Those of a tokenizer's ``training_state`` may be left out: they then stay as they were built.

    Raises:
        CheckpointError: if weights are missing, unfit, or not those that were fingerprinted.
    """
    stored = load_tensors(directory)
    try:
        # Stored halves and codes become the component's own floating-point type.
        spare = component.training_state() if isinstance(component, Tokenizer) else {}
        load_plain(component, {**spare, **stored})
    except RuntimeError as error:
        raise CheckpointError(
            str(directory / WEIGHTS),
            f"does not fit {use} ({_last_line(error)})",
            "restore the file, or the options it was trained with",
        ) from error
    if isinstance(component, Tokenizer) and component.is_fitted:
        _check_fingerprint(component, directory, use)


def load_tensors(directory: Path) -> dict[str, Tensor]:
    """The weights of ``directory`` by name, eight-bit ones as numbers.

    Raises:
        CheckpointError: if they are missing or cannot be read.
    """
    path = directory / WEIGHTS
    if not path.is_file():
        raise CheckpointError(str(directory), f"holds no {WEIGHTS}", "restore it or train again")
    try:
        return unpack(load_file(path))
    except (SafetensorError, RuntimeError, OSError) as error:
        fix = "restore the file, or train again"
        raise CheckpointError(str(path), f"cannot be read ({_last_line(error)})", fix) from error


def _last_line(error: Exception) -> str:
    return str(error).splitlines()[-1].strip()


def _check_fingerprint(component: Tokenizer, directory: Path, use: str) -> None:
    recorded = read_manifest(directory).token_spec
    actual = component.seal(use)
    if recorded is not None and recorded.fingerprint != actual:
        raise CheckpointError(
            str(directory),
            f"weights have fingerprint {actual}, {MANIFEST} says {recorded.fingerprint}",
            "restore both files from the same checkpoint: tokens would change their meaning",
        )


def load_component(directory: Path, host: PluginHost, place: str) -> Component:
    """Build and load the component that ``directory`` describes.

    Raises:
        CheckpointError: if the directory cannot be used.
        PluginError: if its plugin cannot.
    """
    manifest = read_manifest(directory)
    stage = () if manifest.stage_spec is None else (manifest.stage_spec,)
    component = host.create(manifest.kind, manifest.use, manifest.options, *stage, place=place)
    assert isinstance(component, Component)
    load_state(component, directory, manifest.use)
    return component.eval()
