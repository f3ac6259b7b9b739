"""Test whether semantic tokens give structure: hybrid against acoustic-only, equal FLOPs."""

from __future__ import annotations

from segue.findings import measures
from segue.findings.changes import (
    acoustic_stages,
    one_acoustic_stage,
    semantic_stage,
    steps_of,
    swapped,
)
from segue.findings.finding import Finding, Table, better
from segue.findings.study import Study
from segue.findings.variants import Variant, Workshop

USES = ("prompt_seconds", "seconds", "piece_seconds")
HYBRID, ALONE = "hybrid", "acoustic only"


def variants(study: Study, shop: Workshop) -> dict[str, Variant]:
    """Return both with the same acoustic model, and steps chosen for equal FLOPs."""
    config, steps = study.config, study.settings.steps
    semantic, acoustic = semantic_stage(config).name, acoustic_stages(config)[0]
    given = f"stages.{acoustic.name}.given"
    model = [
        *one_acoustic_stage(config),
        *swapped(study.host, acoustic, study.suite.autoregressive, {}),
    ]
    hybrid = [*model, f"{given}=[semantic]", *steps_of(config, steps, [semantic, acoustic.name])]
    alone = [*model, f"{given}=[]", f"stages.{semantic}.drop=true", "semantic_tokenizer=null"]
    equal = shop.equal_steps(alone, [acoustic.name], shop.flops(hybrid))
    alone += steps_of(config, equal, [acoustic.name])
    return {
        HYBRID: Variant("hybrid", tuple(hybrid)),
        ALONE: Variant("acoustic-only", tuple(alone)),
    }


def make(study: Study) -> Finding:
    """Train both from scratch on the same tokens and compare them."""
    shop = Workshop(study)
    made = variants(study, shop)
    found = measures.measure_variants(study, shop, made, USES, measures.preference)
    found.notes.append(
        f"{HYBRID.capitalize()} is trained for {study.settings.steps} steps of each stage, {ALONE} "
        "for as many as take the same arithmetic."
    )
    _judge(study, found)
    return found


def _judge(study: Study, found: Finding) -> None:
    """Judge the claims, and put the figures they rest on in front."""
    judged = {measures.PREFERRED: "high", **study.suite.structure}
    found.shown = tuple(dict.fromkeys((*judged, *found.shown)))
    ours, theirs = found.rows[HYBRID], found.rows[ALONE]
    found.claims = [
        better(f"{HYBRID} is better than {ALONE} by {name}", ours[name], theirs.get(name), which)
        for name, which in judged.items()
        if name in ours
    ]


TABLE = Table(
    "With semantic tokens in between, continuations are coherent for longer than those of a model "
    "of acoustic tokens alone.",
    (*USES, "steps"),
    make,
)
