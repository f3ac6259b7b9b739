"""How fast a continuation is made beside other work, against its fair share of the cores.

    python benchmarks/busy_machine.py [--json FILE] [--domain speech] [--seconds 5] [--repeats 3]

The command that `make demo` runs, beside 0, 1, 2 and 4 processes that never wait. Its fair share is
measured: as many processes as it has threads count to a fixed number beside the same others, and
each slow-down is divided by theirs. 1 is fair; threads that wait by spinning reach 20. Quiet and
busy runs take turns, so that it can run on a machine that is not idle. About 3 minutes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

if not __package__:  # run as a script: import from the checkout's root, not from beside this file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.pipelines import DOMAINS, command
from benchmarks.report import Report, reported
from benchmarks.timing import seconds
from segue.inference.threads import available_cores

BUSY = (0, 1, 2, 4)
GOAL = 1.3
COUNT_TO = 30_000_000  # one to three seconds of pure computing


@contextmanager
def beside(count: int) -> Iterator[None]:
    """Run so many processes that never wait, and end them afterwards."""
    others = [subprocess.Popen([sys.executable, "-Sc", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def fair_share(threads: int) -> None:
    """Compute in as many processes as the job has threads, until all are done."""
    call = [sys.executable, "-Sc", f"for _ in range({COUNT_TO}): pass"]
    for process in [subprocess.Popen(call) for _ in range(threads)]:
        process.wait()


def measure(report: Report, domain: str, audio_seconds: float, repeats: int) -> None:
    """Time the job and the fair share beside each number of busy processes, in turn."""
    threads = available_cores()
    job: dict[int, list[float]] = {count: [] for count in BUSY}
    share: dict[int, list[float]] = {count: [] for count in BUSY}
    with tempfile.TemporaryDirectory() as folder:
        call = command(domain, audio_seconds, Path(folder) / "out.wav")

        def run() -> None:
            subprocess.run(call, check=True, capture_output=True)

        run()  # compiles the kernel on a new machine
        for _ in range(repeats):
            for count in BUSY:
                with beside(count):
                    job[count].append(seconds(run))
                    share[count].append(seconds(lambda: fair_share(threads)))
    for count in BUSY:
        report.note(f"job_beside_{count}", median(job[count]), "s")
        report.note(f"computing_beside_{count}", median(share[count]), "s")
    for count in BUSY[1:]:
        slower = median(job[count]) / median(job[0])
        fair = median(share[count]) / median(share[0])
        report.note(f"slow_down_beside_{count}", slower, f"x, where {fair:.2f} is fair")
        report.ratio(f"unfair_beside_{count}", slower / fair, f"slow-down / fair, goal {GOAL}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--domain", default=DOMAINS[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="of audio that the job makes")
    parser.add_argument("--repeats", type=int, default=3)
    with reported(parser) as (arguments, report):
        measure(report, arguments.domain, arguments.seconds, arguments.repeats)


if __name__ == "__main__":
    main()
