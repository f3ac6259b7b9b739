"""Mark every WAV, FLAC or AIFF file that the command line writes with a comment on how it was made.
A lifecycle plugin: name it under ``hooks:`` in a registry file. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segue.core.hookspecs import hookimpl
from segue.plugins.provenance.marks import stamp


@hookimpl
def segue_output_written(path: Path, metadata: Mapping[str, Any]) -> None:
    stamp(path, metadata)
