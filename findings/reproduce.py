"""Make the tables that the user asks for, each once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from segue.core.errors import ConfigError
from segue.core.files import as_json, write_json
from segue.findings import ablations, codes, measures, temperature, tokens
from segue.findings.finding import Finding, InapplicableError, Table, read_report, write_results
from segue.findings.study import Study

TABLES: dict[str, Table] = {
    "tokens": tokens.TABLE,
    "voice": tokens.VOICE,
    "structure": ablations.STRUCTURE,
    "preference": measures.PREFERENCE,
    "temperature": temperature.TABLE,
    "clusters": ablations.CLUSTERS,
    "levels": ablations.LEVELS,
    "masked": ablations.MASKED_TABLE,
    "codes": codes.TABLE,
}


def chosen_tables(names: Sequence[str]) -> list[str]:
    """Return the tables of those names, in the paper's order."""
    for name in names:
        if name not in TABLES:
            raise ConfigError("tables", f"{name!r} is unknown", f"use some of {', '.join(TABLES)}")
    return [name for name in TABLES if name in names]


def reproduce(study: Study, name: str) -> tuple[dict[str, Any] | None, str]:
    """Make one table, unless it exists with the same settings, and rewrite ``results.md``.

    Returns:
        The table as JSON holds it, and what is to be said of it; None where it does not apply.
    """
    table, path = TABLES[name], study.directory / f"{name}.json"
    settings = study.asked(table.uses)
    report, outcome = read_report(path, settings), "was made before"
    if report is None:
        study.table, study.missing, started = name, {}, time.perf_counter()
        try:
            finding = table.make(study)
        except InapplicableError as reason:
            return None, f"does not apply: {reason}"
        report = as_json(_report(study, name, settings, finding))
        report["elapsed_seconds"] = round(time.perf_counter() - started, 1)
        write_json(path, report)
        outcome = "is made"
    write_results(study.directory, TABLES)
    return report, outcome


def _report(study: Study, name: str, settings: Any, finding: Finding) -> dict[str, Any]:
    missing = [f"{metric} was left out: {reason}" for metric, reason in study.missing.items()]
    return {
        "table": name,
        "about": TABLES[name].about,
        "pipeline": study.config.name,
        "settings": settings,
        "shown": list(finding.shown),
        "rows": finding.rows,
        "claims": [claim.to_json() for claim in finding.claims],
        "notes": [*finding.notes, *missing],
        "commands": finding.commands,
    }
