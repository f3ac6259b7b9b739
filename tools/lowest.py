"""Test with the lowest version that pyproject.toml allows of every core dependency.

    python tools/lowest.py [pytest arguments]

It makes an environment of its own in build/lowest, at the first run: PyTorch is a large download.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLACE = ROOT / "build" / "lowest"
TESTS = (
    *("tests/core", "tests/plugins/models", "tests/data/test_store.py"),
    *("tests/training/test_cost.py", "-m", "not slow"),
)


def lowest() -> list[str]:
    """Return the core dependencies, each pinned to its floor."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (block,) = re.findall(r"^dependencies = \[(.*?)\]$", text, re.DOTALL | re.MULTILINE)
    return [f"{name}=={floor}" for name, floor in re.findall(r'"([\w-]+)>=([\w.]+)"', block)]


def main(arguments: list[str]) -> int:
    python, done = PLACE / "bin" / "python", PLACE / "installed.txt"
    pins = lowest()
    if not done.is_file() or done.read_text(encoding="utf-8").split() != pins:
        subprocess.run([sys.executable, "-m", "venv", "--clear", PLACE], check=True)
        pip = [python, "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, *pins, "pytest>=8", "setuptools>=77", "wheel"], check=True)
        editable = ["--no-deps", "--no-build-isolation", "-e", str(ROOT)]
        subprocess.run([*pip, *editable], check=True)
        done.write_text("\n".join(pins), encoding="utf-8")
    command = [python, "-m", "pytest", *(arguments or TESTS)]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
