"""Test what tokens hold: words or notes, the sound, and whose voice it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from segue.core.errors import DataError
from segue.evaluation.pitches import evaluate_pitches, find_scores
from segue.evaluation.representations import Representation, of_tokenizer
from segue.evaluation.resynthesis import Way
from segue.evaluation.semantic import evaluate_semantic
from segue.evaluation.subjects import Item, load_items, spread_evenly, thinned
from segue.findings.finding import Figures, Finding, InapplicableError, Table, better
from segue.findings.study import TRUTH, Study, of_truth
from segue.inference.pipeline import Pipeline

WAYS: tuple[Way, ...] = ("codec", "acoustic_generation", "semantic")
SCORE_SECONDS = 120.0
ABX = {"within": "ABX within", "across": "ABX across"}  # speakers


def make(study: Study) -> Finding:
    """Measure what tokens reveal of the content, and how well audio is rebuilt from them."""
    if study.pipeline.semantic_tokenizer is None:
        raise InapplicableError("the pipeline has no semantic tokenizer")
    found = Finding()
    for part in (_words, _pitches, _reconstruction):
        part(study, found)
    return found


def representations(
    pipeline: Pipeline, of: Iterable[str] = ("semantic", "codec")
) -> list[Representation]:
    """Return tokens and their vectors, of each tokenizer's first level and of all its levels."""
    found: list[Representation] = []
    for name, tokenizer in (("semantic", pipeline.semantic_tokenizer), ("codec", pipeline.codec)):
        if name in of and tokenizer is not None:
            counts = sorted({1, tokenizer.spec.num_levels})
            found += of_tokenizer(name, tokenizer, pipeline.config.prompt.level, counts)
    return found


def labelled(study: Study) -> list[Item]:
    """Return labelled pieces of held-out recordings; none if the data has no labels and none were
    named.

    Raises:
        DataError: if labels were named and there are none.
    """
    asked = study.settings
    where = dict(text.split("=", 1) for text in asked.where)
    try:
        items = load_items(Path(asked.labels or asked.data), "valid", where)
    except DataError:
        if asked.labels is None:
            return []
        raise
    return thinned(items, asked.per_group)


def discrimination(
    study: Study, items: Sequence[Item], chosen: Sequence[Representation]
) -> dict[str, Figures]:
    """Return ABX errors within and across speakers, by representation."""
    found = evaluate_semantic(items, chosen, study.progress)["representations"]
    return {
        name: {label: row[kind] for kind, label in ABX.items() if kind in row}
        for name, row in found.items()
    }


def _words(study: Study, found: Finding) -> None:
    """Measure ABX errors, if the data has labels."""
    asked, items = study.settings, labelled(study)
    if not items:
        found.notes.append(f"{asked.data} has no labels, so ABX cannot be measured.")
        return
    errors = discrimination(study, items, representations(study.pipeline))
    found.rows |= errors
    found.shown += tuple(ABX.values())
    found.claims += [
        better(
            f"semantic tokens have a lower ABX error {kind} speakers than acoustic tokens",
            _semantic(errors).get(label), _first_level(errors).get(label), "low",
        )
        for kind, label in ABX.items()
    ]  # fmt: skip
    found.commands.append(
        study.command(
            "evaluate semantic", data=asked.labels or asked.data, where=asked.where,
            per_group=asked.per_group, of="semantic_tokenizer,codec",
        )
    )  # fmt: skip


def _pitches(study: Study, found: Finding) -> None:
    """Measure what tokens reveal of the pitch classes that sound, if there are scores."""
    asked = study.settings
    if asked.scores is None:
        return
    chosen = [one for one in representations(study.pipeline) if one.vocabulary is not None]
    recordings = spread_evenly(asked.data, asked.items, "valid")
    figures = evaluate_pitches(
        recordings, find_scores(Path(asked.scores)), chosen, seconds=SCORE_SECONDS,
        progress=study.progress,
    )["representations"]  # fmt: skip
    names = {"bits": "pitch bits", "f1": "pitch F1", "average_precision": "pitch precision"}
    for name, row in figures.items():
        found.rows[name] = {label: row[key] for key, label in names.items()}
    found.shown += tuple(names.values())
    found.claims.append(
        better(
            "a frame's semantic tokens reveal more of the pitch classes that sound than the "
            "codec's first level",
            _semantic(figures)["average_precision"], _first_level(figures)["average_precision"],
            "high",
        )
    )  # fmt: skip
    found.commands.append(
        study.command(
            "evaluate pitches", data=asked.data, midi=asked.scores, items=asked.items,
            of="semantic_tokenizer,codec",
        )
    )  # fmt: skip


def _semantic(figures: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the figures of all levels of semantic tokens, which come after those of the first."""
    names = [name for name in figures if name.startswith("semantic") and name.endswith("tokens")]
    return figures[names[-1]]


def _first_level(figures: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the figures of the codec's first level, which come before those of all levels."""
    return next(row for name, row in figures.items() if name.startswith("codec"))


def _reconstruction(study: Study, found: Finding) -> None:
    """Measure how close audio from all tokens, and from semantic ones alone, comes to the
    recording."""
    pairs = study.suite.pairs
    figures = study.resynthesis(study.pipeline, WAYS, pairs, ())
    found.rows |= {f"audio by {way}": row for way, row in figures.items()}
    shown = [name for name in pairs if name in figures["codec"]]
    found.shown += tuple(shown)
    found.claims += [
        better(
            "audio from acoustic tokens is closer to the recording than audio from semantic "
            f"ones, by {name}",
            figures["codec"][name], figures["acoustic_generation"][name], pairs[name],
        )
        for name in shown
    ]  # fmt: skip
    found.commands.append(
        study.command(
            "evaluate resynthesis", **study.of_resynthesis, of=",".join(WAYS),
            metrics=",".join(shown),
        )
    )  # fmt: skip


TABLE = Table(
    "Semantic tokens hold what is said or played, acoustic tokens how it sounds.",
    ("prompt_seconds", "seconds", "labels", "where", "per_group", "scores"),
    make,
)


VOICE_WAYS: tuple[Way, ...] = ("acoustic_generation", "codec", "recording", "foreign")


def make_voice(study: Study) -> Finding:
    """Measure content and voice of recordings that go through tokens, and of continuations."""
    content, voice = study.suite.content, study.suite.voice
    if content is None or voice is None:
        raise InapplicableError(f"{study.settings.domain} has no words and no speakers")
    if not study.metrics("continuation_metric", [voice]):
        raise InapplicableError(f"{voice}: {study.missing[voice]}")
    rows = study.resynthesis(study.pipeline, VOICE_WAYS, [content], [voice])
    found = study.continuations(study.pipeline, [voice])
    rows |= {"continuation": found, TRUTH: of_truth(found)}
    kept = f"{voice} classified"
    generated, continued = rows["acoustic_generation"], rows["continuation"]
    return Finding(
        rows,
        (content, kept, f"{voice} similarity", f"{voice} above_others", f"{voice} chance"),
        [
            better(
                "the voice of a continuation is taken for the prompt's more often than that of "
                "acoustic generation for the recording's",
                continued.get(kept), generated.get(kept), "high",
            ),
            better(
                "acoustic generation keeps what is said: its phones are nearer to the recording's "
                "than those of another speaker's recording",
                generated.get(content), rows.get("foreign", {}).get(content), "low",
            ),
        ],
        ["Content is compared with what the recogniser hears in the recording itself. Acoustic "
         "generation has no prompt: its voice is compared with the recording's."],
        [
            study.command(
                "evaluate resynthesis", **study.of_resynthesis, of=",".join(VOICE_WAYS),
                metrics=",".join([content, voice]),
            ),
            study.command("evaluate continuations", **study.of_continuations, metrics=voice),
        ],
    )  # fmt: skip


VOICE = Table(
    "Acoustic tokens drawn given a recording's semantic ones keep what is said and not who says "
    "it; a continuation keeps the voice of its prompt.",
    ("prompt_seconds", "seconds"),
    make_voice,
)
