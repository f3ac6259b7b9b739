"""Detectors that plugins ship with weights, and those in a directory."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from segue.core.checkpoint import load_component
from segue.core.component_manifest import MANIFEST, read_manifest
from segue.core.errors import CheckpointError
from segue.core.interfaces import Detector
from segue.core.plugins import PluginHost
from segue.core.records import PluginRecord

KIND = "detector"


def shipped(domain: str, host: PluginHost) -> Path:
    """The directory of weights for a domain: ``pretrained/<domain>`` beside a detector's module.

    Raises:
        CheckpointError: if no detector ships any for it.
    """
    found: set[str] = set()
    for record in host.records("detector"):
        folder = _folder(record)
        if folder is None:
            continue
        if (folder / domain / MANIFEST).is_file():
            return folder / domain
        found |= {path.parent.name for path in folder.glob(f"*/{MANIFEST}")}
    names = ", ".join(sorted(found)) or "none"
    raise CheckpointError(
        domain,
        f"no detector ships weights for it (there are: {names})",
        "train one (`segue train-detector`) and name it: --detector DIR",
    )


def _folder(record: PluginRecord) -> Path | None:
    try:
        file = import_module((record.config or record.target).partition(":")[0]).__file__
    except ImportError:
        return None
    return None if file is None else Path(file).parent / "pretrained"


def load_detector(directory: Path, host: PluginHost) -> Detector:
    """The detector of a directory.

    Raises:
        CheckpointError: if it holds none, or it cannot be used.
    """
    if read_manifest(directory).kind != KIND:
        raise CheckpointError(
            str(directory), "holds no detector", "name what `segue train-detector` wrote"
        )
    detector = load_component(directory, host, "--detector")
    assert isinstance(detector, Detector)
    return detector
