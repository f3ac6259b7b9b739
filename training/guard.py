"""Notice a training that goes wrong, and keep its history: log.jsonl and rollbacks.jsonl."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segue.core.files import add_line, write_text
from segue.core.interfaces import Component, StageLM
from segue.inference.promises import check_likelihood

MAX_SKIPPED_STEPS = 10
LOG, ROLLBACKS = "log.jsonl", "rollbacks.jsonl"
DECAY = 0.95  # of the running means: they reach back about twenty steps
SETTLING_STEPS = 100  # before the means are judged


class Guard:
    """Watch the figures of each step since training started, was resumed or rolled back."""

    def __init__(self, component: Component) -> None:
        self._component = component
        self.reset()

    def reset(self) -> None:
        """Forget all figures: training goes on from elsewhere."""
        self._means: dict[str, float] = {}
        self._seen: dict[str, int] = {}
        self.skipped = 0

    def watch(self, step: int, figures: Mapping[str, float], last: bool = False) -> str | None:
        """Return why training is failing after ``step``, or None.

        Figures that are not finite count as a skipped step and leave the means alone. A training
        that ends and skipped every step has failed, however short it is.

        Raises:
            PluginError: if a stage model breaks the contract of ``StageLM.loss``.
        """
        if not math.isfinite(figures["loss"]):
            self.skipped += 1
            if self.skipped > MAX_SKIPPED_STEPS or (last and not self._seen):
                return f"the loss was not finite in {self.skipped} steps up to step {step}"
            return None
        if isinstance(self._component, StageLM):
            check_likelihood(self._component, figures["loss"])
        self.skipped = 0
        for name, value in figures.items():
            seen = self._seen.get(name, 0)
            kept = min(DECAY, seen / (seen + 1))  # a plain mean at first
            self._means[name] = kept * self._means.get(name, 0.0) + (1 - kept) * value
            self._seen[name] = seen + 1
        # Early figures are wild in every training, so they are not judged.
        settled = {n: v for n, v in self._means.items() if self._seen[n] >= SETTLING_STEPS}
        return self._component.trouble(settled) if settled else None


def add_log_entry(directory: Path, step: int, figures: Mapping[str, float]) -> None:
    """Add a line of figures to a part's log."""
    rounded = {key: float(f"{value:.6g}") for key, value in figures.items()}
    add_line(directory / LOG, json.dumps({"step": step, **rounded}))


def cut_log(directory: Path, step: int) -> None:
    """Drop log lines after ``step``, where training goes on: each step stands there once."""
    path = directory / LOG
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if _step_of_entry(line) <= step]
    if len(kept) < len(lines):
        write_text(path, "".join(kept))


def _step_of_entry(line: str) -> float:
    """Return the step of a log line; infinity if the line is damaged."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def rollbacks(directory: Path) -> list[dict[str, Any]]:
    """Return the rollbacks so far in a part's directory: ``step``, ``trouble``, ``back_to``."""
    path = directory / ROLLBACKS
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines]


def note_rollback(directory: Path, step: int, trouble: str, back_to: int) -> None:
    """Add a rollback. Batches and noise depend on their number, so they differ from here on."""
    notes = [*rollbacks(directory), {"step": step, "trouble": trouble, "back_to": back_to}]
    write_text(directory / ROLLBACKS, "".join(f"{json.dumps(note)}\n" for note in notes))
