"""Run processes beside this one that end with it."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from segue.core.errors import DataError

Task = TypeVar("Task")
Result = TypeVar("Result")

WATCH_SECONDS = 1.0
AHEAD = 4  # tasks for each process that are made before they are needed


def end_with(parent: int) -> None:
    """Let this process end soon after its parent, even if that was killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def process_killed() -> DataError:
    """Return the error that a process died, as for want of memory."""
    fix = "run the command again, with fewer --workers if memory was short: it goes on"
    return DataError("--workers", "a process was killed", fix)


def in_processes(
    work: Callable[[Task], Result], tasks: Iterable[Task], workers: int
) -> Iterator[Result]:
    """Yield results in the order they are ready; few tasks exist at a time.

    Args:
        workers: processes; 1 works in this one.

    Raises:
        DataError: if a process dies, as for want of memory.
    """
    if workers == 1:
        yield from map(work, tasks)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, end_with, (os.getpid(),)) as pool:
        running: set[Future[Result]] = set()
        try:
            for task in tasks:
                running.add(pool.submit(work, task))
                while len(running) >= AHEAD * workers:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        except BrokenProcessPool as error:
            raise process_killed() from error
        finally:
            for future in running:
                future.cancel()
