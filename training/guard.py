"""Notices a training that goes wrong: losses that stay non-finite, or trouble the part reports."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segue.core.files import write_text
from segue.core.interfaces import Component

MAX_SKIPPED_STEPS = 10
LOG, ROLLBACKS = "log.jsonl", "rollbacks.jsonl"
MEMORY = 0.95  # of the running means: about twenty steps
SETTLING_STEPS = 100  # before the means are judged


class Guard:
    """Watches the figures of each step since training started or was last taken up.

    Args:
        component: asked what it makes of the figures' running means.
    """

    def __init__(self, component: Component) -> None:
        self._component = component
        self.reset()

    def reset(self) -> None:
        """Forget all figures: training is taken up elsewhere."""
        self._means: dict[str, float] = {}
        self._seen: dict[str, int] = {}
        self.skipped = 0

    def watch(self, step: int, figures: Mapping[str, float]) -> str | None:
        """What is wrong after ``step``, or None.

        Figures that are not finite count as a skipped step and leave the means alone.
        """
        if not math.isfinite(figures["loss"]):
            self.skipped += 1
            if self.skipped > MAX_SKIPPED_STEPS:
                return f"the loss was not finite in {self.skipped} steps up to step {step}"
            return None
        self.skipped = 0
        for name, value in figures.items():
            seen = self._seen.get(name, 0)
            kept = min(MEMORY, seen / (seen + 1))
            self._means[name] = kept * self._means.get(name, 0.0) + (1 - kept) * value
            self._seen[name] = seen + 1
        settled = {n: v for n, v in self._means.items() if self._seen[n] >= SETTLING_STEPS}
        return self._component.trouble(settled) if settled else None


def rollbacks(directory: Path) -> list[dict[str, Any]]:
    """What went wrong so far in a part's directory: ``step``, ``trouble``, ``back_to``."""
    path = directory / ROLLBACKS
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines]


def note_rollback(directory: Path, step: int, trouble: str, back_to: int) -> None:
    """Add one: from here on, crops and noise are others than before."""
    notes = [*rollbacks(directory), {"step": step, "trouble": trouble, "back_to": back_to}]
    write_text(directory / ROLLBACKS, "".join(f"{json.dumps(note)}\n" for note in notes))
