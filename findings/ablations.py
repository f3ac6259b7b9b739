"""Train variants of a pipeline and compare them: structure, masked decoding, clusters, levels."""

from __future__ import annotations

import json
from collections.abc import Sequence

from segue.core.assembly import assemble
from segue.core.spec import ACOUSTIC
from segue.findings import measures
from segue.findings.finding import Finding, Table, better
from segue.findings.study import Study
from segue.findings.tokens import ABX, labelled
from segue.findings.variants import (
    Variant,
    Workshop,
    acoustic_stages,
    assignments,
    keeping,
    one_acoustic_stage,
    semantic_stage,
    steps_of,
    swapped,
)

USES = ("prompt_seconds", "seconds")
MASKED, CAUSAL = "masked", "autoregressive"


def masked_variants(study: Study, shop: Workshop) -> dict[str, Variant]:
    """Return a masked and a causal acoustic stage, trained for equal FLOPs; the rest is kept."""
    config, suite, steps = study.config, study.suite, study.settings.steps
    acoustic = acoustic_stages(config)[0]
    common = [*keeping(semantic_stage(config)), *one_acoustic_stage(config)]
    causal = [*common, *swapped(study.host, acoustic, suite.autoregressive, {})]
    causal += steps_of(config, steps, [acoustic.name])
    masked = [*common, *swapped(study.host, acoustic, suite.masked, suite.masked_sampling)]
    equal = shop.equal_steps(masked, [acoustic.name], shop.flops(causal))
    masked += steps_of(config, equal, [acoustic.name])
    return {MASKED: Variant(MASKED, tuple(masked)), CAUSAL: Variant(CAUSAL, tuple(causal))}


def make_masked(study: Study) -> Finding:
    """Measure quality and speed of continuations by a masked and by a causal acoustic stage."""
    shop = Workshop(study)
    found = measures.measure_variants(
        study, shop, masked_variants(study, shop), USES, measures.speed
    )
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


MASKED_TABLE = Table(
    "An acoustic stage that fills masks is faster than one that draws from left to right.",
    (*USES, "steps"),
    make_masked,
)


STRUCTURE_USES = ("prompt_seconds", "seconds", "piece_seconds")
HYBRID, ALONE = "hybrid", "acoustic only"


def structure_variants(study: Study, shop: Workshop) -> dict[str, Variant]:
    """Return one with and one without semantic tokens, of the same acoustic model and FLOPs."""
    config, steps = study.config, study.settings.steps
    semantic, acoustic = semantic_stage(config).name, acoustic_stages(config)[0]
    given = f"stages.{acoustic.name}.given"
    model = [
        *one_acoustic_stage(config),
        *swapped(study.host, acoustic, study.suite.autoregressive, {}),
    ]
    hybrid = [*model, f"{given}=[semantic]", *steps_of(config, steps, [semantic, acoustic.name])]
    alone = [*model, f"{given}=[]", f"stages.{semantic}.drop=true", "semantic_tokenizer=null"]
    alone.append(f"stages.{acoustic.name}.sampling.guidance=1.0")  # by what is given
    equal = shop.equal_steps(alone, [acoustic.name], shop.flops(hybrid))
    alone += steps_of(config, equal, [acoustic.name])
    return {
        HYBRID: Variant("hybrid", tuple(hybrid)),
        ALONE: Variant("acoustic-only", tuple(alone)),
    }


def make_structure(study: Study) -> Finding:
    """Train with and without semantic tokens, from scratch, and compare the results."""
    shop = Workshop(study)
    made = structure_variants(study, shop)
    found = measures.measure_variants(study, shop, made, STRUCTURE_USES, measures.preference)
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


STRUCTURE = Table(
    "With semantic tokens in between, continuations are coherent for longer than those of a model "
    "of acoustic tokens alone.",
    (*STRUCTURE_USES, "steps"),
    make_structure,
)


OF_LABELS = ("labels", "where", "per_group")
REST = "rest"  # name of the stage of the levels that are not given semantic tokens


def cluster_variants(study: Study) -> dict[str, Variant]:
    """Return a variant with new clusters of the same features and new stages for each number of
    clusters."""
    config, asked, found = study.config, study.settings, {}
    semantic_stage(config)
    for count in asked.clusters:
        changes = [
            *assignments("semantic_tokenizer.options", {"num_clusters": count}),
            *assignments("semantic_tokenizer.training", {"steps": 0}),
            *steps_of(config, asked.steps, [stage.name for stage in config.stages]),
        ]
        name = f"clusters-{count}"
        found[f"{count} clusters"] = Variant(name, tuple(changes), own_tokens=True)
    return found


def make_clusters(study: Study) -> Finding:
    """Measure word discrimination, what recordings keep, and continuations."""
    labelled(study)  # errors in them must show before anything is trained
    found = measures.measure_variants(
        study, Workshop(study), cluster_variants(study), (*USES, *OF_LABELS),
        measures.discrimination_of_words, measures.content,
    )  # fmt: skip
    found.shown = (*ABX.values(), *_of_content(found), *found.shown)
    return found


def level_variants(study: Study, shop: Workshop) -> dict[str, Variant]:
    """Return variants with the acoustic stage cut in two, for the FLOPs of a whole one; the
    semantic stage stays."""
    config, asked, found = study.config, study.settings, {}
    name, total = acoustic_stages(config)[0].name, _num_levels(study)
    common = [*keeping(semantic_stage(config)), *one_acoustic_stage(config)]
    flops = shop.flops([*common, *steps_of(config, asked.steps, [name])])
    for count in sorted({min(count, total) for count in asked.levels}):
        changes, stages = common, [name]
        if count < total:
            changes, stages = _cut(shop, common, name, count), [name, REST]
        steps = shop.equal_steps(changes, stages, flops)
        changes = [*changes, *steps_of(shop.config(changes), steps, stages)]
        found[f"{count} coarse levels"] = Variant(f"levels-{count}", tuple(changes))
    return found


def make_levels(study: Study) -> Finding:
    """Measure what recordings keep, and continuations."""
    shop = Workshop(study)
    made = level_variants(study, shop)
    found = measures.measure_variants(study, shop, made, USES, measures.content)
    found.shown = (*_of_content(found), *found.shown)
    return found


def _cut(shop: Workshop, overrides: Sequence[str], name: str, count: int) -> list[str]:
    """Leave ``count`` levels to a stage; a second one like it draws the rest given these."""
    stage = shop.config(overrides).stage(name)
    assert stage is not None
    total, passes = _num_levels(shop.study), stage.sampling.iterations
    rest = stage.model_dump(mode="json", exclude_defaults=True) | {
        "name": REST,
        "predicts": f"acoustic[{count}:{total}]",
        "given": [f"acoustic[0:{count}]"],
    }
    cut = [f"stages.{name}.predicts=acoustic[0:{count}]"]
    if passes is not None:  # no more than there are levels
        rest["sampling"] |= {"iterations": passes[: total - count]}
        cut += assignments(f"stages.{name}.sampling", {"iterations": passes[:count]})
    cut.append(f"stages={json.dumps([rest])}")
    return [*overrides, *cut]


def _num_levels(study: Study) -> int:
    """Count the acoustic levels that the pipeline's stages predict."""
    return assemble(study.config, study.host).streams[ACOUSTIC].num_levels


def _of_content(found: Finding) -> tuple[str, ...]:
    first = next(iter(found.rows.values()))
    return tuple(key for key in first if key.startswith(measures.GENERATED))


CLUSTERS = Table(
    "More semantic clusters carry more of the content, and are harder to model.",
    (*USES, *OF_LABELS, "steps", "clusters"),
    make_clusters,
)
LEVELS = Table(
    "How many levels are drawn given the semantic tokens; the rest is drawn given these levels.",
    (*USES, "steps", "levels"),
    make_levels,
)
