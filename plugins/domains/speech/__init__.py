"""The speech domain. Imports no torch."""

from pathlib import Path

from segue.core.domain import Domain

_HERE = Path(__file__).parent

DOMAIN = Domain(
    name="speech",
    directory=_HERE,
    recipe="segue.plugins.domains.speech.recipe:prepare",
    prompt=_HERE / "prompt.flac",
    findings="segue.plugins.domains.speech.findings:SUITE",
)
