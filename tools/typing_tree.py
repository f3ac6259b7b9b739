"""Lay out build/typing/segue/ as the import package, with symlinks, for type checkers.

The root folders become `segue.core`, `segue.plugins` and `segue.apps` only when installed, and an
editable install maps them by an import hook that type checkers do not run.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TREE = ROOT / "build" / "typing" / "segue"
LINKS = {
    **{
        name: ROOT / name
        for name in (
            "core",
            "data",
            "training",
            "evaluation",
            "findings",
            "testing",
            "plugins",
            "apps",
        )
    },
    "__init__.py": ROOT / "src" / "segue" / "__init__.py",
    "py.typed": ROOT / "src" / "segue" / "py.typed",
}


def main() -> None:
    shutil.rmtree(TREE, ignore_errors=True)
    TREE.mkdir(parents=True)
    for name, source in LINKS.items():
        # Relative, so that the tree survives a move of the checkout.
        (TREE / name).symlink_to(os.path.relpath(source, TREE))


if __name__ == "__main__":
    main()
