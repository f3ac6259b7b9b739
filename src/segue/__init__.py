"""Segue: continue, generate and study audio with token language models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["AcousticCodec", "Pipeline", "SegueError", "SemanticTokenizer", "StageLM"]

if TYPE_CHECKING:
    from segue.core.errors import SegueError
    from segue.core.interfaces import AcousticCodec, SemanticTokenizer, StageLM
    from segue.inference.pipeline import Pipeline

_HOMES = {
    "Pipeline": "segue.inference.pipeline",
    "SegueError": "segue.core.errors",
    "SemanticTokenizer": "segue.core.interfaces",
    "AcousticCodec": "segue.core.interfaces",
    "StageLM": "segue.core.interfaces",
}


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import segue` stays light."""
    if name not in _HOMES:
        raise AttributeError(f"module 'segue' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
