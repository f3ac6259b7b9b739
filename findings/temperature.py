"""Show how temperatures change continuations, and choose the best by a rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from segue.findings.finding import Figures, Finding, Table
from segue.findings.study import TRUTH, Study, of_truth
from segue.findings.suite import Direction

CONFIGURED = "as configured"  # name of a row
SPARE = 0.05  # of the rate of sound files that may be lost against the best


def make(study: Study) -> Finding:
    """Measure continuations at each temperature of each stage, the other stages unchanged."""
    suite, own = study.suite, _cell(study, CONFIGURED, [])
    found = Finding({CONFIGURED: own, TRUTH: of_truth(own)}, suite.shown)
    for stage in study.config.stages:
        cells = {stage.sampling.temperature: own}
        for value in study.settings.temperatures:
            if value not in cells:
                cells[value] = _cell(study, f"{stage.name} {value:g}", [_change(stage.name, value)])
                found.rows[f"{stage.name} {value:g}"] = cells[value]
        value = list(cells)[best(list(cells.values()), suite.rule, suite.sound)]
        here = " (as configured)" if cells[value] is own else ""
        found.notes.append(f"Best temperature of `{stage.name}`: **{value:g}**{here}.")
        found.commands.append(
            study.command(
                "evaluate continuations", **study.of_continuations,
                metrics=",".join(_metrics(study)), set=[_change(stage.name, value)],
            )
        )  # fmt: skip
    found.notes.append(rule_in_words(suite.rule, suite.sound))
    return found


def _cell(study: Study, name: str, overrides: Sequence[str]) -> Figures:
    kept = {"overrides": list(overrides), "metrics": _metrics(study)}
    return study.row(
        name,
        kept | study.asked(("prompt_seconds", "seconds")),
        lambda: study.continuations(study.load(overrides=overrides), study.suite.quick),
    )


def _change(stage: str, value: float) -> str:
    return f"stages.{stage}.sampling.temperature={value:g}"


def _metrics(study: Study) -> list[str]:
    return list(study.metrics("continuation_metric", study.suite.quick))


def best(cells: Sequence[Figures], rule: Mapping[str, Direction], sound: str) -> int:
    """Return the cell with the least mean rank over the figures of the rule.

    Cells whose rate of sound files is ``SPARE`` or more below the best one's are out. Figures that
    a cell lacks are left out for all; of equals the first is taken, which is what is configured.
    """
    rates = [_mean(cell, sound) for cell in cells]
    known = [rate for rate in rates if rate is not None]
    least = max(known) - SPARE if known else 0.0
    kept = [n for n, rate in enumerate(rates) if rate is None or rate > least or rate == max(known)]
    ranks = dict.fromkeys(kept, 0.0)
    for name, direction in rule.items():
        values = {n: _mean(cells[n], name) for n in kept}
        costs = {
            n: {"low": value, "high": -value, "zero": abs(value)}[direction]
            for n, value in values.items()
            if value is not None
        }
        if len(costs) == len(kept):
            for n in kept:
                ranks[n] += sum(other < costs[n] for other in costs.values())
                ranks[n] += sum(other == costs[n] for other in costs.values()) / 2
    return min(kept, key=lambda n: ranks[n])


def rule_in_words(rule: Mapping[str, Direction], sound: str) -> str:
    """Put the rule into words."""
    words = {"low": "low", "high": "high", "zero": "near zero"}
    figures = ", ".join(f"{name} ({words[direction]})" for name, direction in rule.items())
    return (
        f"The rule: of the temperatures of one stage whose {sound} is less than {SPARE:g} below "
        f"the best, the one of least mean rank by {figures}."
    )


def _mean(cell: Figures, name: str) -> float | None:
    figure = cell.get(name)
    return None if figure is None else figure["mean"]


TABLE = Table(
    "Temperatures trade soundness for variety; each stage's is changed alone.",
    ("prompt_seconds", "seconds", "temperatures"),
    make,
)
