"""Fixtures of the stage model tests: every model with every kind of stage."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from helpers_stage import MODELS, STAGES

from segue.core.spec import StageSpec


@pytest.fixture(params=MODELS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=list(STAGES))
def stage(request: pytest.FixtureRequest) -> StageSpec:
    return STAGES[request.param]
