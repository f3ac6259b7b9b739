"""What several tests of figures need."""

from __future__ import annotations

import pytest


@pytest.fixture
def constant_waves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let recordings hold constants, which a pipeline would take for an offset."""
    monkeypatch.setattr("segue.inference.inputs.LEAST_OFFSET", 2.0)
