"""Save the weights of components, and build components from them.

A checkpoint is a directory of two files: ``component.json`` describes the component
(``segue.core.checkpoint_files``), ``model.safetensors`` holds its weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from segue.core.assembly import Part
from segue.core.checkpoint_files import MANIFEST, WEIGHTS, ComponentManifest, read_manifest
from segue.core.discovery import distribution_of
from segue.core.eight_bits import CODES, pack, unpack
from segue.core.errors import CheckpointError, ConfigError, UntrainedError
from segue.core.files import write_json
from segue.core.fingerprints import file_digest, token_digest
from segue.core.interfaces import Component, StageLM, Tokenizer
from segue.core.memory import bounded_build, shortage, without_draws
from segue.core.plugins import PluginHost
from segue.core.records import Kind

MOST_HEADER = 1 << 24  # bytes of the header of a file of weights
RESTORE = "restore the file, or train again"

# --- build ------------------------------------------------------------------------------------


def build_part(part: Part, host: PluginHost, *, allow_untrained: bool) -> Component:
    """Build a part and load its weights, or raise ``UntrainedError`` if it lacks those it needs."""
    loaded = part.checkpoint is not None and not allow_untrained
    with bounded_build(part.name), without_draws() if loaded else nullcontext():
        component = part.build(host)
    if part.checkpoint is not None:
        load_state(component, part.checkpoint, part.use)
        if not (component.is_fitted or allow_untrained):
            raise UntrainedError(
                part.name,
                f"{part.checkpoint} was trained but not fitted",
                f"run `segue train {part.name}` to its end: fitting comes last",
            )
    elif component.learns and not allow_untrained:
        raise UntrainedError(
            part.name,
            f"{part.use} must be trained, and the config names no weights for it",
            f"train it (`segue train {part.name}`) or name them: --set {part.place}.checkpoint=DIR",
        )
    if isinstance(component, Tokenizer) and not component.spec.fingerprint:
        component.seal(part.use)
    return component.eval()


def load_component(directory: Path, host: PluginHost, place: str) -> Component:
    """Build and load what a checkpoint describes; raise ``CheckpointError`` or ``PluginError``."""
    manifest = read_manifest(directory)
    stage = () if manifest.stage_spec is None else (manifest.stage_spec,)
    host.find(manifest.kind, manifest.use, place, manifest.made_by)
    with bounded_build(place):
        component: Component = host.create(
            manifest.kind, manifest.use, manifest.options, *stage, place=place
        )
    load_state(component, directory, manifest.use)
    return component.eval()


def checked_device(device: torch.device | str) -> torch.device:
    """Return the device, or raise ``ConfigError`` if this machine cannot compute on it.

    ``auto`` is CUDA if there is any, else the CPU.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        with warnings.catch_warnings():  # PyTorch warns of names that it no longer uses
            warnings.simplefilter("ignore")
            torch.ones(1, device=device).add(1).cpu()
    except (RuntimeError, AssertionError, ImportError, ValueError, TypeError) as error:
        problem = str(error).partition("\n")[0].partition(". ")[0].rstrip(".")
        raise ConfigError(f"device {device}", f"cannot be used ({problem})", "use cpu") from error
    return torch.device(device)


# --- save -------------------------------------------------------------------------------------


def save_component(
    component: Component,
    directory: Path,
    kind: Kind,
    use: str,
    trained: Mapping[str, Any],
    dtype: torch.dtype | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a component into an existing directory; the caller makes that directory atomic.

    Args:
        trained: the data and steps of its training, for people.
        dtype: store floating-point weights of a stage model in this type; ``torch.int8`` stores
            matrices as eight-bit codes (``segue.core.eight_bits``). Weights of a tokenizer never
            change: those that half precision or eight bits hold exactly are stored so.
        state: what to store instead of the component's own, such as ``token_state``.
    """
    proof = ""
    if isinstance(component, Tokenizer):
        proof = component.token_digest(use)
        proof = "" if component.seal(use) == proof else proof
    found = component.state_dict() if state is None else state
    # Cloned, as safetensors refuses tensors that share storage.
    state = {key: value.detach().cpu().contiguous().clone() for key, value in found.items()}
    if dtype is not None:
        if isinstance(component, Tokenizer):
            state = _smaller_exactly(state)
        elif dtype == torch.int8:
            state = pack(state)
        else:
            state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    distribution, version = distribution_of(type(component))
    save_tensors(state, directory / WEIGHTS)
    manifest = ComponentManifest(
        kind,
        use,
        component.config.model_dump(mode="json"),
        spec=component.spec.to_json() if isinstance(component, Tokenizer) else None,
        stage=component.stage.to_json() if isinstance(component, StageLM) else None,
        trained=dict(trained),
        distribution=distribution,
        version=version,
        token_digest=proof,
        weights_digest=file_digest(directory / WEIGHTS),
    )
    write_json(directory / MANIFEST, asdict(manifest))


def _smaller_exactly(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Store in half precision, or in eight bits, every tensor that it does not change."""
    smaller: dict[str, Tensor] = {}
    for name, value in state.items():
        forms = ({name: value.half()}, pack({name: value})) if value.is_floating_point() else ()
        # Bits, as a fingerprint sees them: 0.0 and -0.0 differ.
        bits = value.reshape(-1).view(torch.uint8)
        back = ((form, unpack(form)[name].to(value.dtype).reshape(-1)) for form in forms)
        kept = (form for form, found in back if torch.equal(found.view(torch.uint8), bits))
        smaller |= next(kept, {name: value})
    return smaller


def save_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file, or raise the ``OSError`` that ``segue.core.files`` reports."""
    try:
        save_file(dict(tensors), path, metadata)
    except SafetensorError as error:
        raise OSError(str(error)) from error


# --- load -------------------------------------------------------------------------------------


def load_state(
    component: Component,
    directory: Path,
    use: str,
    load: Callable[[Component, Mapping[str, Tensor]], object] = Component.load_state_dict,
) -> None:
    """Load the weights of a checkpoint into a component built from its manifest.

    Tensors of a tokenizer's ``training_state`` may be missing: they stay as they were built.

    Args:
        load: puts the weights into the component, for one whose modules were changed since.

    Raises:
        CheckpointError: if weights are missing, do not fit, or have another fingerprint.
    """
    stored = load_tensors(directory)
    _check_numbers(stored, component, directory)
    optional = component.training_state() if isinstance(component, Tokenizer) else {}
    try:
        # Stored halves and codes become the component's own floating-point type.
        load(component, {**optional, **stored})
    except RuntimeError as error:
        raise CheckpointError(
            str(directory / WEIGHTS),
            f"does not fit {use} ({_last_line(error)})",
            "restore the file, or the options it was trained with",
        ) from error
    manifest = read_manifest(directory)
    if isinstance(component, Tokenizer) and component.is_fitted:
        _check_fingerprint(component, manifest, directory, use)
    recorded = manifest.weights_digest
    if recorded and recorded != file_digest(directory / WEIGHTS):
        raise CheckpointError(
            str(directory / WEIGHTS),
            f"is damaged, or another file than {MANIFEST} was saved with",
            "restore both files from the same checkpoint",
        )


def load_tensors(directory: Path) -> dict[str, Tensor]:
    """Return a checkpoint's weights by name, codes decoded, or raise ``CheckpointError``."""
    path = directory / WEIGHTS
    if not path.is_file():
        raise CheckpointError(str(directory), f"holds no {WEIGHTS}", RESTORE)
    try:
        with path.open("rb") as file:  # a longer header would take gigabytes to read
            if (length := int.from_bytes(file.read(8), "little")) > MOST_HEADER:
                raise SafetensorError(f"its header states a length of {length} bytes")
        stored = load_file(path)  # maps the file: memory is taken as tensors are copied
        sizes = {key: 4 if key.endswith(CODES) else t.itemsize for key, t in stored.items()}
        needed = sum(stored[key].numel() * size for key, size in sizes.items())
        if (problem := shortage(needed)) is not None:
            raise CheckpointError(str(path), problem, RESTORE)
        return unpack(stored)
    except (SafetensorError, RuntimeError, OSError) as error:
        problem = f"cannot be read ({_last_line(error)})"
        raise CheckpointError(str(path), problem, RESTORE) from error


def _check_numbers(stored: Mapping[str, Tensor], component: Component, directory: Path) -> None:
    """Check that weights are numbers to compute with: drawing from NaN would raise no error."""
    own, parameters = component.state_dict(), dict(component.named_parameters())
    for name, value in stored.items():
        problem = ""
        if not value.is_floating_point():
            if name in own and own[name].is_floating_point():
                problem = f"holds {value.dtype}"
        elif value.numel():
            low, high = torch.aminmax(value.float() if value.itemsize == 1 else value)
            infinite = name in parameters and bool(low.isinf() or high.isinf())
            problem = "holds NaN" if low.isnan() else "holds infinite numbers" if infinite else ""
        if problem:
            raise CheckpointError(str(directory / WEIGHTS), f"{name} {problem}", RESTORE)


def _last_line(error: Exception) -> str:
    return str(error).splitlines()[-1].strip()


def _check_fingerprint(
    component: Tokenizer, manifest: ComponentManifest, directory: Path, use: str
) -> None:
    """Check that weights make the tokens that the manifest names, and keep the name."""
    if manifest.token_spec is None:
        return
    recorded, actual = manifest.token_spec.fingerprint, component.seal(use)
    if recorded == actual:
        return
    # Fingerprints of older checkpoints hash all weights, also those that decide no token.
    if manifest.token_digest != actual and recorded != token_digest(
        use, component.config, component.state_dict()
    ):
        raise CheckpointError(
            str(directory),
            f"weights have fingerprint {actual}, {MANIFEST} says {recorded}",
            "restore both files from the same checkpoint: tokens would change their meaning",
        )
    # Stages know the tokens by the older name: it must go on naming them.
    component.keep_fingerprint(use, recorded)
