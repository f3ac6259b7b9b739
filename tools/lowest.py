"""Test with the lowest version that pyproject.toml allows of every core dependency.

    python tools/lowest.py [pytest arguments]

It makes an environment of its own in build/lowest, at the first run: PyTorch is a large download.
Python 3.10 and 3.11 alone have wheels of all these versions; on a newer one nothing is tested.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLACE = ROOT / "build" / "lowest"
NEWEST = (3, 12)  # the first Python without wheels of PyYAML 6.0
EXTRAS = "train,plot,serve"  # newest that fit: their parts of the suite run, too
TOOLS = (
    "pytest>=8",
    "pytest-xdist>=3.6",
    "httpx>=0.28",
    "jsonschema>=4.20",
    "fsspec>=2024.6",
    "mido>=1.3",
    "setuptools>=77",
    "wheel",
)
#: Recorded figures are those of the newest PyTorch.
RECORDED = "tests/test_golden.py::test_what_was_saved_goes_on"
TESTS = ("-m", "not slow", "-n", "auto", "--dist", "loadfile", "--deselect", RECORDED)


def lowest() -> list[str]:
    """Return the core dependencies, each pinned to its floor."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (block,) = re.findall(r"^dependencies = \[(.*?)\]$", text, re.DOTALL | re.MULTILINE)
    return [f"{name}=={floor}" for name, floor in re.findall(r'"([\w-]+)>=([\w.]+)"', block)]


def main(arguments: list[str]) -> int:
    if sys.version_info >= NEWEST:
        print("Left out: the lowest versions have wheels for Python 3.10 and 3.11 only.")
        return 0
    python, done = PLACE / "bin" / "python", PLACE / "installed.txt"
    pins = lowest()
    if not done.is_file() or done.read_text(encoding="utf-8").split() != pins:
        subprocess.run([sys.executable, "-m", "venv", "--clear", PLACE], check=True)
        pip = [python, "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, *pins, *TOOLS, f"{ROOT}[{EXTRAS}]"], check=True)
        editable = ["--no-deps", "--no-build-isolation", "-e", str(ROOT)]
        subprocess.run([*pip, *editable], check=True)
        done.write_text("\n".join(pins), encoding="utf-8")
    command = [python, "-m", "pytest", *(arguments or TESTS)]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
