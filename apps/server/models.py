"""Load the pipelines that a server offers, under the names that clients use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from segue.core.errors import ConfigError
from segue.core.progress import ProgressChoice
from segue.inference.pipeline import Pipeline


def load_models(
    sources: Sequence[str],
    overrides: Iterable[str] = (),
    device: str = "cpu",
    progress: ProgressChoice = None,
) -> dict[str, Pipeline]:
    """Return pipelines by name.

    Raises:
        ConfigError: if two have the same name.
        SegueError: if one cannot be loaded.
    """
    pipelines: dict[str, Pipeline] = {}
    for source in sources:
        loaded = Pipeline.from_pretrained(
            source, overrides=tuple(overrides), device=device, progress=progress
        )
        # A directory's name stays here: clients see the name in its config.
        name = loaded.config.name if Path(source).exists() else source
        if name in pipelines:
            raise ConfigError(source, f"is a second model named {name!r}", "leave one out")
        pipelines[name] = loaded
    return pipelines
