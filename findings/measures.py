"""Train variants and measure them, each once; compare true with spoiled continuations."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from segue.evaluation.likelihood import Spoiling, evaluate_order
from segue.evaluation.statistics import grouped_summary
from segue.evaluation.subjects import usable
from segue.findings.finding import Figures, Finding, Table, above
from segue.findings.study import TRUTH, Study, of_truth
from segue.findings.tokens import discrimination, labelled, representations
from segue.findings.variants import Variant, Workshop
from segue.inference.pipeline import Pipeline

SPOILED = ("shuffled", "reversed", "foreign", "foreign_prompt")
CHANCE = 0.5


def preferences(study: Study, pipeline: Pipeline) -> dict[str, Any]:
    """Measure how often a pipeline's first stage finds the true continuation likelier."""
    asked = study.settings
    order = Spoiling(asked.prompt_seconds, asked.seconds, asked.piece_seconds, asked.seed)
    found: dict[str, Any] = evaluate_order(pipeline, study.recordings, order, study.progress)[
        "order"
    ]
    found.pop("unusable")
    return found


def make_preference(study: Study) -> Finding:
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


PREFERENCE = Table(
    "The first stage finds the true continuation of a prompt likelier than a spoiled one; "
    "chance is 0.5.",
    ("prompt_seconds", "seconds", "piece_seconds"),
    make_preference,
)


Measure = Callable[[Study, Pipeline], Figures]
FLOPS, PREFERRED, SPEED = "training TFLOP", "preferred to shuffled", "seconds per second"
GENERATED = "generated"  # begins the names of figures of acoustic generation
TIMED = 8  # recordings


def measure_variants(
    study: Study,
    shop: Workshop,
    variants: Mapping[str, Variant],
    uses: Sequence[str],
    *measures: Measure,
) -> Finding:
    """Make a row for each variant and one for the truth; shown figures are of continuations.

    Args:
        variants: by the names of their rows.
        uses: settings that what is measured depends on.
        measures: beside continuations.
    """
    found = Finding(shown=(*study.suite.shown, FLOPS))
    metrics = list(study.metrics("continuation_metric", study.suite.continuations))
    asked = study.asked(uses)
    for name, variant in variants.items():
        settings = asked | {"overrides": list(variant.overrides), "metrics": metrics}
        make = partial(_measured, study, shop, variant, (*measures, continuations))
        found.rows[name] = study.row(name, settings, make)
        found.commands += [
            *shop.commands(variant),
            study.command(
                "evaluate continuations", shop.directory(variant) / "pipeline",
                **study.of_continuations, metrics=",".join(metrics),
            ),
        ]  # fmt: skip
    found.rows[TRUTH] = of_truth(found.rows[next(iter(variants))])
    return found


def _measured(
    study: Study, shop: Workshop, variant: Variant, measures: tuple[Measure, ...]
) -> Figures:
    pipeline = study.load(shop.trained(variant))
    figures: dict[str, Any] = {FLOPS: shop.flops(variant.overrides) / 1e12}
    for measure in measures:
        figures |= measure(study, pipeline)
    return figures


def continuations(study: Study, pipeline: Pipeline) -> Figures:
    """Measure continuations."""
    return study.continuations(pipeline, study.suite.continuations)


def preference(study: Study, pipeline: Pipeline) -> Figures:
    """Measure how often the first stage finds true continuations likelier than shuffled ones."""
    return {PREFERRED: preferences(study, pipeline)["shuffled"]}


def content(study: Study, pipeline: Pipeline) -> Figures:
    """Measure what acoustic generation keeps of recordings."""
    pairs = filter(None, (study.suite.content, *study.suite.pairs))
    found = study.resynthesis(pipeline, ["acoustic_generation"], pairs, ())
    return {f"{GENERATED} {key}": v for key, v in found["acoustic_generation"].items()}


def discrimination_of_words(study: Study, pipeline: Pipeline) -> Figures:
    """Return ABX errors of the semantic tokens; none if the data has no labels."""
    items = labelled(study)
    if not items:
        return {}
    (row,) = discrimination(study, items, representations(pipeline, ["semantic"])[:1]).values()
    return row


def speed(study: Study, pipeline: Pipeline) -> Figures:
    """Return seconds of computing per second of added audio."""
    asked, rows, groups = study.settings, [], []
    for index, recording in enumerate(study.recordings[: TIMED + 1]):
        audio = usable(recording, pipeline.config.prompt)
        if audio is None:
            continue
        prompt = audio.wave[: round(asked.prompt_seconds * audio.sample_rate)]
        started = time.perf_counter()
        pipeline.continue_(prompt, audio.sample_rate, seconds=asked.seconds, seed=asked.seed)
        if index:  # what is computed first takes longer
            rows.append({SPEED: (time.perf_counter() - started) / asked.seconds})
            groups.append(recording.group)
    return grouped_summary(rows, groups) if rows else {}
