"""Record what Segue computes today, or check that it still computes the same.

    python tools/golden.py record [FILE]                       write the reference
    python tools/golden.py check [FILE] [--only SECTION ...]   list what differs; exit 1 if anything
    python tools/golden.py save DIRECTORY                      make what later versions must load

FILE is tests/golden/golden.json by default. Token ids and text must be the same everywhere. On the
kind of machine that recorded FILE, audio and figures must be, too; on another kind, figures may
differ by a ten-thousandth and hashes of audio are not compared. Two processes work side by side.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

#: Set before torch is imported: sums depend on the number of threads.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0", "COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb",
    "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore",
}  # fmt: skip
FILE = Path(__file__).resolve().parent.parent / "tests" / "golden" / "golden.json"
PROCESSES = 2
EXACT, LOOSE = 2e-6, 1e-4
MOST_LINES = 20
SECTION = "section"
PACKAGES = ("torch", "torchaudio", "numpy", "scikit-learn", "transformers", "soundfile")


def machine() -> dict[str, str]:
    """Describe what floats depend on: the processor and the libraries."""
    import torch

    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text() if info.exists() else "")
    processor = names[0] if names else platform.processor()
    capability = torch.backends.cpu.get_cpu_capability()
    found = {"processor": processor, "capability": capability, "python": platform.python_version()}
    return found | {name: version(name) for name in PACKAGES}


def run_section(name: str) -> Any:
    """Compute one section in a process and an empty folder of its own."""
    with tempfile.TemporaryDirectory(prefix="segue-golden-") as folder:
        output = Path(folder) / "found.json"
        command = [sys.executable, __file__, SECTION, name, "--output", str(output)]
        work = Path(folder) / "work"
        work.mkdir()
        started = time.monotonic()
        done = subprocess.run(
            command, cwd=work, env=os.environ | ENVIRONMENT, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        took = f"{time.monotonic() - started:.0f} s"
        busy = done.stdout.strip() or "it failed"
        print(f"{name}: {took}, of a processor: {busy}", file=sys.stderr, flush=True)
        if done.returncode:
            return {"failed": done.stderr.strip().splitlines()[-MOST_LINES:]}
        return json.loads(output.read_text())


def compute(names: Sequence[str]) -> dict[str, Any]:
    """Compute sections, two at a time."""
    with ThreadPoolExecutor(PROCESSES) as pool:
        return dict(zip(names, pool.map(run_section, names), strict=True))


def differences(old: Any, new: Any, tolerance: float, place: str = "") -> Iterator[str]:
    """Yield a line for each place where two records differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old | new:
            if key not in new or key not in old:
                yield f"{place} / {key}: is {'missing' if key not in new else 'new'}"
            elif key != "audio_sha256" or tolerance < LOOSE:
                yield from differences(old[key], new[key], tolerance, f"{place} / {key}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (a, b) in enumerate(zip(old, new, strict=True)):
            yield from differences(a, b, tolerance, f"{place} [{index}]")
    elif isinstance(old, list) and isinstance(new, list):
        yield f"{place}: had {len(old)} entries, has {len(new)}"
    elif isinstance(old, float) and isinstance(new, (int, float)):
        if abs(old - new) > tolerance * max(abs(old), abs(new)):
            yield f"{place}: was {old}, is {new}"
    elif old != new:
        yield f"{place}: was {old!r}, is {new!r}"


def as_text(record: Any) -> str:
    """Write JSON with short lists of numbers on one line."""
    text = json.dumps(record, indent=1, ensure_ascii=False)
    return re.sub(r"\[[\s\d.,eE+-]+\]", lambda m: "".join(m[0].split()).replace(",", ", "), text)


def check(file: Path, only: Sequence[str]) -> int:
    """Compare the recorded sections with what is computed now."""
    record = json.loads(file.read_text())
    here = machine()
    same = record["machine"] == here
    if not same:
        changed = [f"{key}: {old} -> {here[key]}" for key, old in record["machine"].items()
                   if old != here[key]]  # fmt: skip
        print("another kind of machine; figures may differ by 1e-4:", *changed, sep="\n  ")
    names = [name for name in record["sections"] if not only or name in only]
    found = compute(names)
    count = 0
    for name in names:
        tolerance = EXACT if same else LOOSE
        lines = list(differences(record["sections"][name], found[name], tolerance, name))
        lines += [line for line in found[name].get("failed", []) if "failed" in found[name]]
        count += len(lines)
        print(f"{name}: {f'{len(lines)} differences' if lines else 'the same'}")
        print(*(f"  {line}" for line in lines[:MOST_LINES]), sep="\n", end="\n" if lines else "")
        if len(lines) > MOST_LINES:
            print(f"  ... and {len(lines) - MOST_LINES} more")
    print(f"{count} differences" if count else "everything is the same")
    return 1 if count else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=("record", "check", "save", SECTION))
    parser.add_argument("file", nargs="?", default=str(FILE), help="or the name of a section")
    parser.add_argument("--only", nargs="+", default=(), help="sections to check")
    parser.add_argument("--output", type=Path, help="of one section")
    asked = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    import golden_cases
    import golden_training
    import torch

    torch.set_num_threads(1)
    if asked.task == SECTION:
        asked.output.write_text(json.dumps(golden_cases.sections()[asked.file]()))
        print(f"{time.process_time():.0f} s")
    elif asked.task == "save":
        target = Path(asked.file).resolve()
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            golden_training.save(target)
    elif asked.task == "check":
        return check(Path(asked.file), asked.only)
    else:
        found = compute(list(golden_cases.sections()))
        failed = {name: made["failed"] for name, made in found.items() if "failed" in made}
        if failed:
            print(json.dumps(failed, indent=1))
            return 1
        Path(asked.file).write_text(as_text({"machine": machine(), "sections": found}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
