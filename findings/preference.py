"""Test whether true continuations are likelier than spoiled ones."""

from __future__ import annotations

from typing import Any

from segue.evaluation.likelihood import Order, evaluate_order
from segue.findings.finding import Figures, Finding, Table, above
from segue.findings.study import Study
from segue.inference.pipeline import Pipeline

SPOILED = ("shuffled", "reversed", "foreign", "foreign_prompt")
CHANCE = 0.5


def preferences(study: Study, pipeline: Pipeline) -> dict[str, Any]:
    """Measure how often a pipeline's first stage finds the true continuation likelier."""
    asked = study.settings
    order = Order(asked.prompt_seconds, asked.seconds, asked.piece_seconds, asked.seed)
    found: dict[str, Any] = evaluate_order(pipeline, study.recordings, order, study.progress)[
        "order"
    ]
    found.pop("unusable")
    return found


def make(study: Study) -> Finding:
    """Compare true with shuffled, reversed and foreign continuations."""
    asked, figures = study.settings, preferences(study, study.pipeline)
    rows: dict[str, Figures] = {
        name: {"preferred": figures[name], "nats per frame": figures[f"{name}_margin"]}
        for name in SPOILED
    }
    command = study.command(
        "evaluate likelihood", shuffled=asked.data, items=asked.items, seconds=asked.seconds,
        prompt_seconds=asked.prompt_seconds, piece_seconds=asked.piece_seconds, seed=asked.seed,
    )  # fmt: skip
    texts = {
        "shuffled": f"pieces of {asked.piece_seconds:g} s in another order",
        "reversed": "the same backwards",
        "foreign": "the continuation of another recording",
        "foreign_prompt": "the same after another recording's prompt",
    }
    claims = [
        above(f"the true continuation is likelier than {text}", rows[name]["preferred"], CHANCE)
        for name, text in texts.items()
    ]
    return Finding(rows, ("preferred", "nats per frame"), claims, [], [command])


TABLE = Table(
    "The first stage finds the true continuation of a prompt likelier than a spoiled one; "
    "chance is 0.5.",
    ("prompt_seconds", "seconds", "piece_seconds"),
    make,
)
