"""Test whether acoustic generation keeps the content and a continuation keeps the voice."""

from __future__ import annotations

from segue.evaluation.resynthesis import Way
from segue.findings.finding import Finding, InapplicableError, Table, better
from segue.findings.study import TRUTH, Study, of_truth

WAYS: tuple[Way, ...] = ("acoustic_generation", "codec", "recording", "foreign")


def make(study: Study) -> Finding:
    """Measure content and voice of recordings that go through tokens, and of continuations."""
    content, voice = study.suite.content, study.suite.voice
    if content is None or voice is None:
        raise InapplicableError(f"{study.settings.domain} has no words and no speakers")
    if not study.metrics("continuation_metric", [voice]):
        raise InapplicableError(f"{voice}: {study.missing[voice]}")
    rows = study.resynthesis(study.pipeline, WAYS, [content], [voice])
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
                "evaluate resynthesis", **study.of_resynthesis, of=",".join(WAYS),
                metrics=",".join([content, voice]),
            ),
            study.command("evaluate continuations", **study.of_continuations, metrics=voice),
        ],
    )  # fmt: skip


TABLE = Table(
    "Acoustic tokens drawn given a recording's semantic ones keep what is said and not who says "
    "it; a continuation keeps the voice of its prompt.",
    ("prompt_seconds", "seconds"),
    make,
)
