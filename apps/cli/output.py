"""Print results on standard output, notes and errors on standard error. Imports no torch."""

from __future__ import annotations

import io
import json
import os
import socket
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from segue.core.discovery import described, exits_refused
from segue.core.errors import ConfigError, PluginError, SegueError
from segue.core.memory import out_of_memory
from segue.core.plugins import default_host
from segue.core.registry import FIRST_PARTY

DEBUG = "SEGUE_DEBUG"  # set to 1, it shows tracebacks
#: Packages that end a command on purpose, rich where nobody reads the output any more.
OURS = {"segue", "typer", "click", "rich", "__main__"}

# No markup: the name of a file may hold brackets.
console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
errors = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)


@contextmanager
def clear_errors() -> Iterator[None]:
    """End the process with one sentence and exit code 2 where the user can fix what went wrong.

    Warnings become one line each, and so do exceptions of a plugin's code. Anything else is a bug
    of Segue and keeps its traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a path may hold letters the terminal lacks
            stream.reconfigure(errors="backslashreplace")
    try:
        with exits_refused(everywhere=True), warnings.catch_warnings():
            # Python's own way names a place in our code and shows the line that warns.
            warnings.showwarning = lambda message, *_, **__: warn("warning:", str(message))
            yield
    except SegueError as error:
        fail(str(error), error)
    except KeyboardInterrupt:
        sys.exit(130)
    except SystemExit as error:
        frames = traceback.walk_tb(error.__traceback__)
        refusal = exits_refused.__module__  # raises where a plugin calls os._exit
        *_, (frame, line) = (f for f in frames if f[0].f_globals.get("__name__") != refusal)
        owner = str(frame.f_globals.get("__name__")).partition(".")[0]
        if owner in OURS:
            raise
        place = f"{frame.f_code.co_filename}, line {line}"
        fix = f"leave the plugin out, or report it to {owner}"
        fail(f"{place}: ends the command, {error.code!r}; {fix}", error)
    except OSError as error:  # a full disk, a missing library
        if error.errno is None:
            fail(f"this installation: {error}; run `segue doctor`", error)
        place = error.filename or "a file"
        fail(f"{place}: {error.strerror}; check that place and its free space", error)
    except BaseException as error:
        if out_of_memory(error):
            fix = "ask for fewer --seconds, a lower --count or smaller parts"
            fail(f"memory: there is not enough; {fix}", error)
        for owner, package in _plugins_in(error):
            fix = f"leave the plugin out, or report it to {owner}"
            fail(f"{owner}: {described(error, package)}; {fix}", error)
        raise


def _plugins_in(error: BaseException) -> Iterator[tuple[str, str]]:
    """Yield source and package of each plugin whose code was running, the innermost first."""
    sources = {
        record.target.partition(":")[0].partition(".")[0]: record.source
        for record in default_host().records()
        if record.source != FIRST_PARTY
    }
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame in reversed(frames):
        package = str(frame.f_globals.get("__name__")).partition(".")[0]
        if package in sources:
            yield sources[package], package


def fail(message: str, error: BaseException | None = None) -> NoReturn:
    """Print one sentence on standard error and exit with code 2."""
    if error is not None and os.environ.get(DEBUG, "0") not in ("", "0"):
        errors.print("".join(traceback.format_exception(error)), end="")
    warn("error:", message, "bold red")
    sys.exit(2)


def check_address(host: str, port: int) -> None:
    """Refuse an address that cannot be listened on, before models are loaded.

    Raises:
        ConfigError: if another program listens there, or this machine or user may not.
    """
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers set it
            trial.bind((host, port))
    except OSError as error:
        problem = f"cannot be listened on ({error.strerror})"
        raise ConfigError(f"{host}:{port}", problem, "choose another --port or --host") from error


def require(command: str, extra: str, *modules: str) -> None:
    """Refuse a command whose extra is not installed."""
    for module in modules:
        if find_spec(module) is None:
            raise PluginError(command, f"needs {module}", f"pip install 'segue[{extra}]'")


def wrote(output: Path, json: bool, **more: Any) -> None:
    """Print where a result lies."""
    if json:
        print_json({"output": str(output), **more})
    else:
        console.print(f"{output}")


def note(message: str) -> None:
    """Print a remark on standard error, so that output stays readable for machines."""
    warn("note:", message)


def warn(label: str, message: str, style: str = "yellow") -> None:
    """Print one line on standard error."""
    # Escaped is what a terminal cannot show, or would obey instead of showing.
    line = "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in " ".join(message.split())
    )
    errors.print(Text.assemble((label, style), " ", line))


@contextmanager
def renamed(places: Mapping[str, object]) -> Iterator[None]:
    """Let errors name the option or file that the user wrote.

    Args:
        places: a ``SegueError.place`` → what to say instead.
    """
    try:
        yield
    except SegueError as error:
        error.place = str(places.get(error.place, error.place))
        raise


def print_json(data: Any) -> None:
    """Print indented JSON; NaN and infinity become null."""
    from segue.core.files import as_json

    typer.echo(json.dumps(as_json(data), indent=2, default=str))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str = "") -> None:
    """Print a table; a narrow terminal folds long cells instead of cutting them."""
    headers = (Column(name, overflow="fold") for name in columns)
    table = Table(*headers, title=title or None, title_justify="left")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    console.print(table)
