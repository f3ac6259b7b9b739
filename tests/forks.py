"""Run functions in processes of their own, forked off one that has imported what takes long."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["pytest", "torch", "lightning_fabric", "segue.training.loop"])


class Fork:
    """Start ``function(*arguments)``; what it writes to standard output and error goes to ``log``.

    Args:
        function: one that can be imported by name.
        environment: variables that are changed for it.
    """

    def __init__(
        self, function: Callable[..., object], *arguments: Any, log: Path, **environment: str
    ) -> None:
        self._log = log
        arguments = (log, {**os.environ, **environment}, function, arguments)
        self._process = SERVER.Process(target=_run, args=arguments)
        self._process.start()

    def kill(self, number: int) -> None:
        """Send a signal."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def wait(self, seconds: float = 240) -> int | None:
        """Return the exit code: minus the signal for a process that was killed, None while busy."""
        self._process.join(seconds)
        return self._process.exitcode

    def written(self) -> str:
        """Return what it has written so far."""
        return self._log.read_text(encoding="utf-8", errors="replace")


def _run(
    log: Path, environment: dict[str, str], function: Callable[..., object], arguments: Any
) -> None:
    import torch

    os.environ.clear()
    os.environ.update(environment)
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    function(*arguments)
