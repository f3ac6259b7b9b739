"""Let type checkers find segue in an editable install, and lay out build/typing for our own check.

The root folders become `segue.core`, `segue.plugins` and so on only when installed, and an editable
install maps them by an import hook that type checkers do not run. They do read `segue-stubs`
(PEP 561) in folders that a .pth file of site-packages names: this script makes both.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
STUBS = BUILD / "stubs"
FOLDERS = (
    "core", "sound", "inference", "data", "training", "evaluation", "findings", "testing",
    "plugins", "apps",
)  # fmt: skip


def main() -> None:
    # Our own check uses a package, which mypy_path names.
    lay_out(BUILD / "typing" / "segue", "__init__.py")
    # Other projects get a name that Python does not import, so that the hook stays in charge.
    lay_out(STUBS / "segue-stubs", "__init__.pyi")
    installed = importlib.util.find_spec("segue")
    if installed is not None and Path(str(installed.origin)).is_relative_to(ROOT):
        point_to_stubs(Path(sysconfig.get_path("purelib")))


def point_to_stubs(site_packages: Path) -> None:
    (site_packages / "segue-stubs.pth").write_text(f"{STUBS}\n", encoding="utf-8")


def lay_out(tree: Path, facade: str) -> None:
    """Make a package of symlinks to the sources."""
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    sources = {name: ROOT / name for name in FOLDERS}
    sources |= {facade: ROOT / "src/segue/__init__.py", "py.typed": ROOT / "src/segue/py.typed"}
    for name, source in sources.items():
        # Relative, so that the tree survives a move of the checkout.
        (tree / name).symlink_to(os.path.relpath(source, tree))


if __name__ == "__main__":
    main()
