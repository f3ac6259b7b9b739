"""Compare masked decoding of acoustic tokens with drawing them from left to right."""

from __future__ import annotations

from segue.findings import measures
from segue.findings.changes import (
    acoustic_stages,
    keeping,
    one_acoustic_stage,
    semantic_stage,
    steps_of,
    swapped,
)
from segue.findings.finding import Finding, Table, better
from segue.findings.study import Study
from segue.findings.variants import Variant, Workshop

USES = ("prompt_seconds", "seconds")
MASKED, CAUSAL = "masked", "autoregressive"


def variants(study: Study, shop: Workshop) -> dict[str, Variant]:
    """Return both acoustic stages, trained for equal FLOPs, after the pipeline's semantic stage."""
    config, suite, steps = study.config, study.suite, study.settings.steps
    acoustic = acoustic_stages(config)[0]
    common = [*keeping(semantic_stage(config)), *one_acoustic_stage(config)]
    causal = [*common, *swapped(study.host, acoustic, suite.autoregressive, {})]
    causal += steps_of(config, steps, [acoustic.name])
    masked = [*common, *swapped(study.host, acoustic, suite.masked, suite.masked_sampling)]
    equal = shop.equal_steps(masked, [acoustic.name], shop.flops(causal))
    masked += steps_of(config, equal, [acoustic.name])
    return {MASKED: Variant(MASKED, tuple(masked)), CAUSAL: Variant(CAUSAL, tuple(causal))}


def make(study: Study) -> Finding:
    """Measure quality and speed of continuations by both."""
    shop = Workshop(study)
    found = measures.measure_variants(study, shop, variants(study, shop), USES, measures.speed)
    found.shown = (measures.SPEED, *found.shown)
    found.claims = [
        better(
            "masked decoding takes less time",
            found.rows[MASKED].get(measures.SPEED), found.rows[CAUSAL].get(measures.SPEED), "low",
        )
    ]  # fmt: skip
    found.notes += [
        f"{CAUSAL.capitalize()} is trained for {study.settings.steps} steps, {MASKED} for as many "
        "as take the same arithmetic.",
        "The time is that of a whole continuation, the semantic stage's included.",
    ]
    return found


TABLE = Table(
    "An acoustic stage that fills masks is faster than one that draws from left to right.",
    (*USES, "steps"),
    make,
)
