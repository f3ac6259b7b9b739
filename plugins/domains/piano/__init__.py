"""The piano domain. Imports no torch."""

from pathlib import Path

from segue.core.domain import Domain

_HERE = Path(__file__).parent

DOMAIN = Domain(
    name="piano",
    directory=_HERE,
    recipe="segue.plugins.domains.piano.recipe:prepare",
    prompt=_HERE / "prompt.flac",
    findings="segue.plugins.domains.piano.findings:SUITE",
)
