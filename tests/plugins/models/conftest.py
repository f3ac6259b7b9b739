"""Choose the models and stages that each stage model test runs with."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from helpers_stage import MODELS, STAGES

#: Every family with every stage, and every variant with the stage that has most to go wrong. The
#: stages and variants that only repeat what another family shows are slow.
FAMILIES = ("flat", "delay", "depth")
PAIRS = [(kind, "two") for kind in MODELS if kind not in FAMILIES]
PAIRS += [(kind, name) for kind in FAMILIES for name in STAGES]
FAST_STAGES = ("levels", "two")
BOTH_SHOWN = ("flat_runs_sequence", "depth_relative")  # by variants that have one of their options


def _marks(kind: str, stage: str = "two") -> list[pytest.MarkDecorator]:
    repeated = kind in ("delay", "depth") and stage not in FAST_STAGES
    return [pytest.mark.slow] if repeated or kind in BOTH_SHOWN else []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that names ``kind`` for every model, and with ``stage`` for ``PAIRS``."""
    names = metafunc.fixturenames
    if _parametrized(metafunc, "kind") or "kind" not in names:
        return
    if "stage" in names:
        values = [
            pytest.param(kind, STAGES[name], marks=_marks(kind, name), id=f"{kind}-{name}")
            for kind, name in PAIRS
        ]
        metafunc.parametrize(("kind", "stage"), values)
    else:
        metafunc.parametrize("kind", [pytest.param(k, marks=_marks(k)) for k in MODELS])


def _parametrized(metafunc: pytest.Metafunc, name: str) -> bool:
    """Return whether the test itself lists the values of an argument."""
    marks = metafunc.definition.iter_markers("parametrize")
    return any(name in str(mark.args[0]) for mark in marks)
