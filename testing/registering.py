"""Register the plugins of one distribution in a process of its own, and report what that did.

``segue.testing.distribution`` starts it: ``python -m segue.testing.registering REPORT``, with the
distribution in ``SEGUE_PLUGINS``. Imports no torch.
"""

from __future__ import annotations

import json
import locale
import os
import random
import signal
import socket
import sys
import threading
import time
import warnings
from pathlib import Path

from segue.core.discovery import activate, find_plugins
from segue.core.records import API_VERSION, OLDEST_API_VERSION


def process_state() -> dict[str, object]:
    """Return what every part of a process shares, by a name that a message can hold."""
    os.umask(mask := os.umask(0))  # it can only be read by setting it
    handled = (signal.SIGINT, signal.SIGTERM)
    return {
        **{f"the handler of {each.name}": signal.getsignal(each) for each in handled},
        "environment variables": dict(os.environ),
        "the umask": mask,
        "the locale": locale.setlocale(locale.LC_ALL),
        "random numbers of Python": random.getstate(),
        "sys.stdout or sys.stderr": (sys.stdout, sys.stderr),
        "sys.excepthook": sys.excepthook,
        "the recursion limit": sys.getrecursionlimit(),
        "the time-out of sockets": socket.getdefaulttimeout(),
        # Segue times each import: its timer may end a little later.
        "threads": {t for t in threading.enumerate() if not isinstance(t, threading.Timer)},
    }


def main(report: Path) -> None:
    """Activate every plugin that may be used; write what happened as JSON."""
    before, found, folder = process_state(), find_plugins(), Path.cwd()
    began = time.perf_counter()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        statuses = [activate(status, quiet=False) for status in found]
    seconds, after = time.perf_counter() - began, process_state()
    known = {
        "seconds": seconds,
        "torch": "torch" in sys.modules,
        "moved_to": "" if Path.cwd() == folder else str(Path.cwd()),
        "changed": [name for name in before if before[name] != after[name]],
        "broken": {s.entry_point: s.error for s in statuses if s.state != "ok"},
        "deprecated": [
            str(each.message)
            for each in warned
            if issubclass(each.category, DeprecationWarning | FutureWarning)
        ],
        "foreign": [
            f"{r.kind}/{r.name} is for plugin API {r.api_version}, this host speaks {API_VERSION}"
            for s in statuses
            for r in s.records
            if not OLDEST_API_VERSION <= r.api_version <= API_VERSION
        ],
        "records": [(r.kind, r.name) for s in statuses for r in s.records],
    }
    sys.stdout.flush()
    report.write_text(json.dumps(known), encoding="utf-8")
    os._exit(0)  # threads that a plugin started must not keep the process alive


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
