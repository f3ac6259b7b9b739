"""Try numbers of semantic clusters, and numbers of acoustic levels drawn given them."""

from __future__ import annotations

import json
from collections.abc import Sequence

from segue.core.assembly import assemble
from segue.core.spec import ACOUSTIC
from segue.findings import measures
from segue.findings.changes import (
    acoustic_stages,
    assignments,
    keeping,
    one_acoustic_stage,
    semantic_stage,
    steps_of,
)
from segue.findings.finding import Finding, Table
from segue.findings.study import Study
from segue.findings.tokens import ABX, labelled
from segue.findings.variants import Variant, Workshop

USES, OF_LABELS = ("prompt_seconds", "seconds"), ("labels", "where", "per_group")
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
    "More semantic clusters tell more of the content, and are harder to model.",
    (*USES, *OF_LABELS, "steps", "clusters"),
    make_clusters,
)
LEVELS = Table(
    "How many levels are drawn given the semantic tokens; the rest is drawn given these levels.",
    (*USES, "steps", "levels"),
    make_levels,
)
