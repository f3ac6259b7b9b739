"""Register the plugins of one distribution in a process of its own, and report what that did.

``segue.testing.distribution`` starts it: ``python -m segue.testing.registering REPORT``, with the
distribution in ``SEGUE_PLUGINS``. Imports no torch.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from pathlib import Path

from segue.core.discovery import activate, find_plugins


def main(report: Path) -> None:
    """Activate every plugin that may be used; write what happened as JSON."""
    found, folder, began = find_plugins(), Path.cwd(), time.perf_counter()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", DeprecationWarning)
        statuses = [activate(status, quiet=False) for status in found]
    seconds = time.perf_counter() - began
    known = {
        "seconds": seconds,
        "torch": "torch" in sys.modules,
        "moved_to": "" if Path.cwd() == folder else str(Path.cwd()),
        "broken": {s.entry_point: s.error for s in statuses if s.state != "ok"},
        "deprecated": [
            str(each.message) for each in warned if issubclass(each.category, DeprecationWarning)
        ],
        "records": [(r.kind, r.name) for s in statuses for r in s.records],
    }
    sys.stdout.flush()
    report.write_text(json.dumps(known), encoding="utf-8")
    os._exit(0)  # threads that a plugin started must not keep the process alive


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
