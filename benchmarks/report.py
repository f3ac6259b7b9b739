"""Report a benchmark: ratios by key, the machine, raw figures; printed, and as JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.timing import machine


@dataclass
class Report:
    """Collects figures and prints each as it is found.

    Attributes:
        ratios: the figures that matter, each a quotient of two measured in this run.
        raw: what they were made of.
    """

    ratios: dict[str, float] = field(default_factory=dict)
    raw: dict[str, Any] = field(default_factory=dict)

    def note(self, key: str, value: float, unit: str) -> float:
        """Keep and print a raw figure."""
        self.raw[key] = {"value": value, "unit": unit}
        print(f"  {key}: {value:.4g} {unit}", flush=True)
        return value

    def ratio(self, key: str, value: float, meaning: str) -> None:
        """Keep and print a quotient, and say what it compares."""
        self.ratios[key] = value
        print(f"* {key}: {value:.3g} ({meaning})", flush=True)

    def write(self, path: Path | None) -> None:
        """Write ``{"ratios", "machine", "raw"}`` if a path is given."""
        if path is None:
            return
        data = {"ratios": self.ratios, "machine": machine(), "raw": self.raw}
        path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
        print(f"written: {path}")


@contextmanager
def reported(parser: argparse.ArgumentParser) -> Iterator[tuple[argparse.Namespace, Report]]:
    """Read the options, ``--json`` among them, say on which machine it runs, and in the end write
    the report."""
    parser.add_argument("--json", type=Path, help="also write the figures there")
    arguments, report = parser.parse_args(), Report()
    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    yield arguments, report
    report.write(arguments.json)
