"""Plant the faults of tests/faults.yaml one at a time and show that fast tests catch each of them.

Each fault changes one place of a temporary copy of the checkout; the checkout itself is never
touched. The tests that a fault names run first; with ``--full`` the whole fast suite follows if
none of them fails. At the end the tests that caught something must pass without any fault.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import queue
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
FAULTS = ROOT / "tests" / "faults.yaml"
LINKED_BYTES = 1 << 20  # larger files are linked, not copied
LIMIT_SECONDS = 1800  # of one pytest run
LEFT_OUT = ("-p", "no:schemathesis", "-p", "no:hypothesispytest")  # they take long to import
FAST = ("-x", "-q", "-m", "not slow", "--no-header", "-o", "addopts=--import-mode=importlib")
# A server imports what is slow to import once; each pytest run is a fork of it.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch", "torchaudio", "lightning_fabric", "pydantic", "pytest"])


@dataclass(frozen=True)
class Fault:
    """Describe one mutation; ``tests`` are arguments of pytest that select what is to fail."""

    name: str
    file: str
    find: str
    replace: str
    tests: str


def read_faults() -> list[Fault]:
    """Read the list and check that names are unique."""
    faults = [Fault(**entry) for entry in yaml.safe_load(FAULTS.read_text(encoding="utf-8"))]
    if len({fault.name for fault in faults}) < len(faults):
        raise SystemExit(f"{FAULTS}: a name is there twice")
    return faults


def locate(fault: Fault, root: Path) -> Path:
    """Return the file that holds the text to find, exactly once."""
    path = root / fault.file
    count = path.read_text(encoding="utf-8").count(fault.find) if path.is_file() else 0
    if count != 1:
        raise RuntimeError(f"{fault.file} holds the text to find {count} times, not once")
    return path


def copy_tree(target: Path) -> None:
    """Copy tracked and new files of the checkout; large ones become links."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        source, copy = ROOT / name, target / name
        if source.is_file():  # else it is deleted, but not committed yet
            copy.parent.mkdir(parents=True, exist_ok=True)
            large = source.stat().st_size > LINKED_BYTES
            copy.symlink_to(source) if large else shutil.copy2(source, copy)
    subprocess.run([sys.executable, "tools/typing_tree.py"], cwd=target, check=True)
    # An interpreter of its own, as tests start processes without the environment. Folders that a
    # .pth file names have their own .pth files ignored: an editable install is not seen.
    venv.create(target / ".venv", symlinks=True)
    (packages,) = (target / ".venv" / "lib").glob("*/site-packages")
    found = (path for path in sys.path if path.endswith("site-packages"))
    paths = [str(target / "build" / "typing"), *found]
    (packages / "copy.pth").write_text("\n".join(paths), encoding="utf-8")


def pytest_child(root: Path, arguments: Sequence[str]) -> None:
    """Run fast tests in this process, a fork of the server."""
    os.chdir(root)
    sys.path.insert(0, str(root / "build" / "typing"))
    sys.executable = str(root / ".venv" / "bin" / "python")
    multiprocessing.set_executable(sys.executable)
    os.environ.pop("PYTHONPATH", None)
    with root.with_suffix(".log").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        sys.exit(pytest.main([*FAST, *LEFT_OUT, "--cache-clear", *arguments]))


def run_pytest(root: Path, arguments: Sequence[str]) -> list[str]:
    """Run fast tests in a copy and return those that failed."""
    failed = root / ".pytest_cache" / "v" / "cache" / "lastfailed"
    failed.unlink(missing_ok=True)
    child = SERVER.Process(target=pytest_child, args=(root, arguments))
    child.start()
    child.join(LIMIT_SECONDS)
    if child.exitcode not in (0, 1):  # too slow, crashed, not importable, or nothing selected
        child.kill()
        last = " ".join(root.with_suffix(".log").read_text().strip().splitlines()[-1:])
        raise RuntimeError(f"pytest ended with {child.exitcode}: {last}")
    return list(json.loads(failed.read_text())) if child.exitcode else []


def caught_by(fault: Fault, path: Path, root: Path, full: bool) -> list[str]:
    """Plant a fault in a copy, run its tests, take it out; return the tests that failed."""
    text, stamp = path.read_text(encoding="utf-8"), path.stat()
    try:
        path.write_text(text.replace(fault.find, fault.replace), encoding="utf-8")
        failed = run_pytest(root, shlex.split(fault.tests))
        return failed or (run_pytest(root, []) if full else [])
    finally:
        path.write_text(text, encoding="utf-8")
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # as cached bytecode remembers it


def main() -> int:
    """Plant the faults that are named, or all of them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="faults to plant (default: all)")
    parser.add_argument("--full", action="store_true", help="go on with the whole fast suite")
    parser.add_argument("--jobs", type=int, default=1, help="copies that are tested side by side")
    parser.add_argument("--dry-run", action="store_true", help="only find where each fault goes")
    chosen = parser.parse_args()
    faults = [f for f in read_faults() if not chosen.names or f.name in chosen.names]
    if len(faults) < len(set(chosen.names)):
        parser.error("the list lacks one of these names")
    words = {True: "found" if chosen.dry_run else "caught", False: "MISSED"}
    caught: set[str] = set()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        copies: queue.Queue[Path] = queue.Queue()
        for number in range(chosen.jobs):
            copies.put(Path(folder) / f"copy{number}")
            copy_tree(Path(folder) / f"copy{number}")

        def judge(fault: Fault) -> bool:
            root, started = copies.get(), time.monotonic()
            try:
                path = locate(fault, root)
                failed = [] if chosen.dry_run else caught_by(fault, path, root, chosen.full)
                good = chosen.dry_run or bool(failed)
                label = f"{words[good]}  {fault.name} in {path.relative_to(root)}"
            except RuntimeError as error:
                good, failed, label = False, [], f"FAILED  {fault.name}: {error}"
            finally:
                copies.put(root)
            caught.update(failed)
            seconds = round(time.monotonic() - started)
            print(f"{label} ({seconds} s): {(failed or [fault.tests])[0]}", flush=True)
            return good

        with ThreadPoolExecutor(chosen.jobs) as pool:
            total = sum(pool.map(judge, faults))
        broken = run_pytest(copies.get(), sorted(caught)) if caught else []
    for test in broken:
        print(f"FAILS WITHOUT A FAULT TOO: {test}")
    print(f"{total} of {len(faults)} faults {'can be planted' if chosen.dry_run else 'caught'}")
    return 0 if total == len(faults) and not broken else 1


if __name__ == "__main__":
    sys.exit(main())
