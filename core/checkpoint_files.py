"""Look at checkpoints without reading weights: ``component.json`` and the steps of a training.

Assembly needs no more to refuse parts that do not fit. Imports no torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segue.core.errors import CheckpointError
from segue.core.files import read_text
from segue.core.records import Kind
from segue.core.spec import StageSpec, TokenSpec

FORMAT_VERSION = 1
MANIFEST, WEIGHTS = "component.json", "model.safetensors"
STATE_JSON = "trainer.json"
#: Every error that a malformed description raises.
MALFORMED = (
    OSError, ValueError, TypeError, AttributeError, KeyError, ZeroDivisionError, RecursionError,
)  # fmt: skip
FITTED = "-fitted"  # ends the names of checkpoints that were fitted after training


@dataclass(frozen=True)
class ComponentManifest:
    """The contents of ``component.json``: it describes the weights beside it."""

    kind: Kind  # ``semantic_tokenizer``, ``codec``, ``stage_lm`` or ``detector``
    use: str  # registered name of the plugin
    options: dict[str, Any]  # the plugin's options, complete
    spec: dict[str, Any] | None = None  # a tokenizer's spec, with its fingerprint
    # A stage model's slices, with the fingerprints it was trained on.
    stage: dict[str, Any] | None = None
    # The data and steps of its training; free-form, for people and model cards.
    trained: dict[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION
    distribution: str = ""  # package that the plugin came from; empty if unknown, as in older files
    version: str = ""  # of that package
    # Hash of what decides a tokenizer's tokens where its fingerprint is an older hash; empty where
    # the fingerprint is that hash.
    token_digest: str = ""
    weights_digest: str = ""  # hash of the file of weights; empty in older files

    @property
    def made_by(self) -> str:
        """Return the package that the plugin came from, as pip takes it; empty if unknown."""
        return "==".join(filter(None, (self.distribution, self.version)))

    @property
    def token_spec(self) -> TokenSpec | None:
        return None if self.spec is None else TokenSpec.from_json(self.spec)

    @property
    def stage_spec(self) -> StageSpec | None:
        return None if self.stage is None else StageSpec.from_json(self.stage)


def read_manifest(directory: Path) -> ComponentManifest:
    """Read ``component.json``, or raise ``CheckpointError``; weights are not touched."""
    path = directory / MANIFEST
    if not path.is_file():
        raise CheckpointError(
            str(directory), f"holds no {MANIFEST}", "name a directory that `segue train` wrote"
        )
    try:
        data = json.loads(read_text(path))
        version = data.get("format_version")
        if version != FORMAT_VERSION:
            raise CheckpointError(
                str(path),
                f"has format version {version!r}, this Segue reads {FORMAT_VERSION}",
                "install the Segue that wrote it, or train again",
            )
        manifest = ComponentManifest(**data)
        _check_form(manifest)
        return manifest
    except MALFORMED as error:
        raise CheckpointError(
            str(path), f"cannot be read ({error!r})", "restore the file or train again"
        ) from error


def _check_form(manifest: ComponentManifest) -> None:
    """Raise one of ``MALFORMED`` if a value has another form than the class says."""
    for name in ("kind", "use", "distribution", "version", "token_digest", "weights_digest"):
        if not isinstance(value := getattr(manifest, name), str):
            raise TypeError(f"{name} is {value!r}")
    for name in ("options", "trained"):
        if not isinstance(value := getattr(manifest, name), dict):
            raise TypeError(f"{name} is {value!r}")
    _ = manifest.token_spec, manifest.stage_spec  # malformed ones are refused here


def checkpoints(directory: Path) -> list[Path]:
    """Return the complete checkpoints in a part's directory, by step."""
    # Steps are zero-padded in the names, so that names sort as steps do.
    return sorted(path for path in directory.glob("step-*") if (path / STATE_JSON).is_file())


def newest_checkpoint(directory: Path) -> Path | None:
    """Return the complete checkpoint of the highest step in a part's directory, if any."""
    return next(reversed(checkpoints(directory)), None)


def holding_weights(directory: Path) -> Path:
    """Return a directory of weights: this one, or the newest checkpoint that it holds."""
    newest = None if (directory / MANIFEST).is_file() else newest_checkpoint(directory)
    return newest or directory
