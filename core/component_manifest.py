"""What ``component.json`` in a checkpoint directory says. Imports no torch.

It is read before any weight is, so that assembly can refuse parts that do not fit.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segue.core.errors import CheckpointError
from segue.core.records import Kind
from segue.core.spec import StageSpec, TokenSpec

FORMAT_VERSION = 1
MANIFEST, WEIGHTS = "component.json", "model.safetensors"


@dataclass(frozen=True)
class ComponentManifest:
    """What ``component.json`` says of the weights beside it.

    Attributes:
        kind: ``semantic_tokenizer``, ``codec``, ``stage_lm`` or ``detector``.
        use: registered name of the plugin.
        options: the plugin's options, complete.
        spec: of a tokenizer, with its fingerprint.
        stage: of a stage LM: what it predicts, with the fingerprints it was trained on.
        trained: what it was trained on and how far; free-form, for people and model cards.
    """

    kind: Kind
    use: str
    options: dict[str, Any]
    spec: dict[str, Any] | None = None
    stage: dict[str, Any] | None = None
    trained: dict[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    @property
    def token_spec(self) -> TokenSpec | None:
        return None if self.spec is None else TokenSpec.from_json(self.spec)

    @property
    def stage_spec(self) -> StageSpec | None:
        return None if self.stage is None else StageSpec.from_json(self.stage)


def read_manifest(directory: Path) -> ComponentManifest:
    """Read ``component.json`` without touching the weights.

    Raises:
        CheckpointError: if it is missing, unreadable or of another format version.
    """
    path = directory / MANIFEST
    if not path.is_file():
        raise CheckpointError(
            str(directory), f"holds no {MANIFEST}", "name a directory that `segue train` wrote"
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        version = data.get("format_version")
        if version != FORMAT_VERSION:
            raise CheckpointError(
                str(path),
                f"has format version {version!r}, this Segue reads {FORMAT_VERSION}",
                "install the Segue that wrote it, or train again",
            )
        manifest = ComponentManifest(**data)
        _ = manifest.token_spec, manifest.stage_spec  # so that what is malformed is told here
        return manifest
    except (OSError, ValueError, TypeError, AttributeError, KeyError, ZeroDivisionError) as error:
        raise CheckpointError(
            str(path), f"cannot be read ({error!r})", "restore the file or train again"
        ) from error
