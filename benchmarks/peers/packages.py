"""Find the peers' packages, which live in a folder of their own, not in Segue's environment."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "peers"
INSTALL = "pip install --no-deps --target build/peers -r benchmarks/peers/requirements.txt"


def use_packages(peer: str, folder: Path | None = None) -> bool:
    """Let ``peer`` be imported from ``folder``; if it is not there, print why it is skipped.

    Args:
        peer: the import name of its package.
        folder: where its packages were installed; by default ``build/peers`` in the checkout, or
            what the environment variable ``SEGUE_PEERS`` names.
    """
    folder = folder or Path(os.environ.get("SEGUE_PEERS", FOLDER))
    if not (folder / peer / "__init__.py").exists():
        print(f"{peer} skipped: it is not in {folder}. To install it there: {INSTALL}")
        return False
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing that is measured needs a download
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    return True
