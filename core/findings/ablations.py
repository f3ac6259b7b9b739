"""How many semantic clusters, and how many acoustic levels are drawn given them."""

from __future__ import annotations

import json
from collections.abc import Sequence

from segue.core.findings import measures
from segue.core.findings.changes import (
    acoustic_stages,
    assignments,
    keeping,
    one_acoustic_stage,
    semantic_stage,
    steps_of,
)
from segue.core.findings.finding import Finding, Table
from segue.core.findings.study import Study
from segue.core.findings.tokens import ABX, labelled
from segue.core.findings.variants import Variant, Workshop

USES, OF_LABELS = ("prompt_seconds", "seconds"), ("labels", "where", "per_group")
REST = "rest"  # name of the stage of the levels that are not given semantic tokens


def make_clusters(study: Study) -> Finding:
    """Clusters of the same features and all stages anew, for each number of clusters."""
    config, asked, variants = study.config, study.settings, {}
    semantic_stage(config)
    labelled(study)  # what is wrong with them is told before anything is trained
    for count in asked.clusters:
        changes = [
            *assignments("semantic_tokenizer.options", {"num_clusters": count}),
            *assignments("semantic_tokenizer.training", {"steps": 0}),
            *steps_of(config, asked.steps, [stage.name for stage in config.stages]),
        ]
        name = f"clusters-{count}"
        variants[f"{count} clusters"] = Variant(name, tuple(changes), own_tokens=True)
    kinds = (measures.discrimination_of_words, measures.content)
    uses = (*USES, *OF_LABELS)
    found = measures.measure_variants(study, Workshop(study), variants, uses, *kinds)
    found.shown = (*ABX.values(), *_of_content(found), *found.shown)
    return found


def make_levels(study: Study) -> Finding:
    """The acoustic stage cut in two, for the FLOPs of a whole one; the semantic one is kept."""
    shop, config, asked = Workshop(study), study.config, study.settings
    name, total = acoustic_stages(config)[0].name, study.pipeline.codec.spec.num_levels
    common = [*keeping(semantic_stage(config)), *one_acoustic_stage(config)]
    flops = shop.flops([*common, *steps_of(config, asked.steps, [name])])
    variants = {}
    for count in sorted({min(count, total) for count in asked.levels}):
        changes, stages = common, [name]
        if count < total:
            changes, stages = _cut(shop, common, name, count), [name, REST]
        steps = shop.equal_steps(changes, stages, flops)
        changes = [*changes, *steps_of(shop.config(changes), steps, stages)]
        variants[f"{count} coarse levels"] = Variant(f"levels-{count}", tuple(changes))
    found = measures.measure_variants(study, shop, variants, USES, measures.content)
    found.shown = (*_of_content(found), *found.shown)
    return found


def _cut(shop: Workshop, overrides: Sequence[str], name: str, count: int) -> list[str]:
    """Leave ``count`` levels to a stage; one like it draws the rest given these."""
    stage = shop.config(overrides).stage(name)
    assert stage is not None
    total = shop.study.pipeline.codec.spec.num_levels
    rest = stage.model_dump(mode="json", exclude_none=True) | {
        "name": REST,
        "predicts": f"acoustic[{count}:{total}]",
        "given": [f"acoustic[0:{count}]"],
    }
    cut = [f"stages.{name}.predicts=acoustic[0:{count}]", f"stages={json.dumps([rest])}"]
    return [*overrides, *cut]


def _of_content(found: Finding) -> tuple[str, ...]:
    first = next(iter(found.rows.values()))
    return tuple(key for key in first if key.startswith(measures.GENERATED))


CLUSTERS = Table(
    "More semantic clusters tell more of the content, and are harder to model.",
    (*USES, *OF_LABELS, "steps", "clusters"),
    make_clusters,
)
LEVELS = Table(
    "How many levels are drawn given the semantic tokens; the rest is drawn given these levels.",
    (*USES, "steps", "levels"),
    make_levels,
)
