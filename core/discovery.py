"""Find installed plugins without importing them; import them one by one. Imports no torch.

Every fault of a plugin becomes data (``PluginStatus``) and concerns that plugin alone: each is
tried in a hook manager of its own, and joins the others only if all of it is in order.
"""

from __future__ import annotations

import configparser
import importlib.metadata
import os
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from typing import Any, Literal

import entrypoints
import pluggy
from pydantic import ValidationError

from segue.core import hookspecs
from segue.core.errors import PluginError
from segue.core.hookspecs import ENTRY_POINT_GROUP, PROJECT
from segue.core.records import KINDS, UNSTATED, PluginRecord
from segue.core.validation import suggestion

#: Environment variable: the distributions whose plugins may be used; ``off`` or empty means none.
PLUGINS_VARIABLE = "SEGUE_PLUGINS"
PATIENCE = 5.0  # seconds that importing may take before the user is told
HOOKS = frozenset(name for name in vars(hookspecs) if name.startswith("segue_"))
#: Hook of an earlier version -> the only kind that it may register.
ONE_KIND = {f"segue_register_{kind}s": kind for kind in KINDS}


@dataclass(frozen=True)
class PluginStatus:
    """A plugin and its state."""

    # Its distribution's normalised name, or the path of the registry file that names it.
    source: str
    entry_point: str  # the name of its entry point, or its module
    target: str = ""  # ``"module"`` or ``"module:attribute"``
    # ``found`` (not tried yet), ``ok``, ``broken`` (left out), ``blocked`` (never imported),
    # ``overruled`` (it claims a name of Segue's own, which is used instead) or ``unknown`` (a
    # registry file blocks or pins it, and it is not there).
    state: Literal["found", "ok", "broken", "blocked", "overruled", "unknown"] = "found"
    error: str = ""  # why it is not ``ok``
    records: tuple[PluginRecord, ...] = ()  # the components that it registered
    # The module or object that implements its hooks, once it was imported.
    plugin: Any = field(default=None, compare=False, repr=False)

    @property
    def label(self) -> str:
        return f"{self.source}:{self.entry_point}"


def normalised(distribution: str) -> str:
    """Return a distribution's name as package indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution.strip()).lower()


def find_plugins(
    path: Sequence[str] | None = None, *, everything: bool = False
) -> list[PluginStatus]:
    """List the entry points of the group ``segue.plugins``, sorted by distribution and name.

    A distribution that is found twice (an editable install leaves two descriptions) counts once:
    the first on the path and, in one folder, the newest, as in the import system.

    Args:
        everything: include plugins that ``SEGUE_PLUGINS`` leaves out.
    """
    chosen = None if everything else os.environ.get(PLUGINS_VARIABLE)
    allowed = None if chosen is None else {normalised(name) for name in chosen.split(",")}
    if allowed is not None and allowed <= {"off", ""}:
        return []
    described: dict[str, str] = {}
    for folder in dict.fromkeys(sys.path if path is None else path):
        for name, text in _descriptions(folder):
            if allowed is None or name in allowed:
                described.setdefault(name, text)
    found = [status for name, text in described.items() for status in _entry_points(name, text)]
    return sorted(found, key=lambda status: (status.source, status.entry_point))


def _descriptions(folder: str) -> list[tuple[str, str]]:
    """Return name and entry points of each distribution in a folder with plugins, newest first."""
    found = []
    for distribution in importlib.metadata.distributions(path=[folder]):
        try:
            text = distribution.read_text("entry_points.txt") or ""
            if ENTRY_POINT_GROUP in text:
                numbers = [int(number) for number in re.findall(r"\d+", distribution.version)]
                found.append((numbers, normalised(distribution.metadata["Name"]), text))
        except Exception:
            continue  # without a name there is nothing that a message could point at
    return [(name, text) for _, name, text in sorted(found, reverse=True)]


def _entry_points(source: str, text: str) -> Iterator[PluginStatus]:
    config = entrypoints.CaseSensitiveConfigParser(delimiters=("=",))
    try:
        config.read_string(text)
    except configparser.Error as error:
        problem = f"cannot be parsed ({error})"
        yield PluginStatus(source, "entry_points.txt", state="broken", error=problem)
        return
    for name, value in config[ENTRY_POINT_GROUP].items() if ENTRY_POINT_GROUP in config else ():
        try:
            point = entrypoints.EntryPoint.from_string(value, name)
        except entrypoints.BadEntryPoint:
            problem = f"its entry point is not 'module:attribute': {value}"
            yield PluginStatus(source, name, state="broken", error=problem)
            continue
        attribute = f":{point.object_name}" if point.object_name else ""
        yield PluginStatus(source, name, f"{point.module_name}{attribute}")


def distribution_of(kind: type) -> tuple[str, str]:
    """Return name and version of the installed distribution that a class comes from.

    The name is that of the class's package if no distribution claims it; the version may be empty.
    """
    return _owner(kind.__module__.partition(".")[0])


@cache
def _owner(package: str) -> tuple[str, str]:
    # Looking through all distributions takes long, and most components are Segue's own.
    owners = {} if package == PROJECT else importlib.metadata.packages_distributions()
    name = next(iter(owners.get(package, ())), package)
    try:
        return name, importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return name, ""


def import_target(target: str) -> Any:
    """Import the module ``"package.module"`` or the object ``"package.module:attribute"``."""
    module, _, attribute = target.partition(":")
    found: Any = import_module(module)
    for name in filter(None, attribute.split(".")):
        found = getattr(found, name)
    return found


def hook_manager(plugins: Iterable[PluginStatus]) -> pluggy.PluginManager:
    """Return a manager of Segue's hooks that calls these plugins in their order."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    for status in reversed(list(plugins)):  # pluggy calls the plugin registered last first
        manager.register(status.plugin, name=status.label)
    return manager


@contextmanager
def exits_refused(*, everywhere: bool = False) -> Iterator[None]:
    """Let ``os._exit`` raise ``SystemExit`` in the block, so that the code that calls it is named.

    Args:
        everywhere: in all threads, not in this one only. A forked child may always end.
    """
    leave, process, thread = os._exit, os.getpid(), threading.get_ident()

    def refuse(status: int) -> None:
        if os.getpid() != process or not (everywhere or threading.get_ident() == thread):
            leave(status)
        raise SystemExit(f"it called os._exit({status})")

    os._exit = refuse  # type: ignore[assignment]
    try:
        yield
    finally:
        os._exit = leave


@contextmanager
def contained(who: str, *, quiet: bool = True) -> Iterator[None]:
    """Keep a plugin whose code is imported in the block from ending or spoiling the process.

    An import that takes long is reported.

    Args:
        quiet: let ``print`` go to standard error, as standard output may carry JSON or samples,
            and come back to the working directory, as relative paths are read from there.
    """

    def say() -> None:
        fix = f"Ctrl-C ends that, {PLUGINS_VARIABLE}=off leaves plugins out"
        sys.stderr.write(f"still importing {who} after {PATIENCE:g} s; {fix}\n")

    timer = threading.Timer(PATIENCE, say)
    timer.daemon = True
    before = _working_directory()
    try:
        timer.start()
        with exits_refused(), redirect_stdout(sys.stderr if quiet else sys.stdout):
            yield
    finally:
        timer.cancel()
        if quiet and before and _working_directory() != before:
            os.chdir(before)
            sys.stderr.write(f"{who} changed the working directory; it is {before} again\n")


def _working_directory() -> str:
    """Return the working directory; empty if it was removed."""
    try:
        return os.getcwd()  # noqa: PTH109  # a text, as os.chdir takes it back
    except FileNotFoundError:
        return ""


def activate(found: PluginStatus, *, quiet: bool = True) -> PluginStatus:
    """Import a plugin, check its hooks and collect its records; see ``contained`` for ``quiet``."""
    if found.state != "found":
        return found
    try:
        with contained(found.label, quiet=quiet):
            plugin = import_target(found.target) if found.plugin is None else found.plugin
            status = replace(found, state="ok", plugin=plugin)
            return replace(status, records=_records(status))
    except PluginError as error:
        return replace(found, state="broken", error=error.problem)
    except BaseException as error:  # a plugin may even call sys.exit() or raise KeyboardInterrupt
        return replace(found, state="broken", error=described(error, found.target))


def _records(status: PluginStatus) -> tuple[PluginRecord, ...]:
    plugin, records, unstated = status.plugin, dict[tuple[str, str], PluginRecord](), list[str]()
    if isinstance(plugin, type):
        raise _fault(f"{plugin.__name__} is a class; name a module or an object")
    manager = hook_manager([status])  # raises where an argument is not in the specification
    for name in sorted(HOOKS):
        if callable(getattr(plugin, name, None)) and not manager.parse_hookimpl_opts(plugin, name):
            raise _fault(f"{name} is not decorated with @segue.core.hookspecs.hookimpl")
    callers = manager.get_hookcallers(plugin)
    if not callers:
        raise _fault("implements no hook")
    for caller in callers:
        # An optional hook is one of a newer or older Segue, which this one never calls.
        if not (caller.has_spec() or all(one.optionalhook for one in caller.get_hookimpls())):
            raise _fault(f"there is no hook {caller.name}; {suggestion(caller.name, HOOKS)}")
        if not caller.name.startswith("segue_register"):
            continue
        for returned in caller() or [None]:  # pluggy leaves out answers that are None
            if not isinstance(returned, list | tuple):
                raise _fault(f"{caller.name} returned {returned!r}, not a list of PluginRecord")
            for record in returned:
                if not isinstance(record, PluginRecord):
                    raise _fault(f"{caller.name} returned {record!r}, not a PluginRecord")
                if record.kind != ONE_KIND.get(caller.name, record.kind):
                    raise _fault(f"{caller.name}: {record.name!r} is of kind {record.kind!r}")
                if record.api_version is UNSTATED:
                    unstated.append(record.name)
                    record = replace(record, api_version=1)
                record = replace(record, source=status.source)
                if records.setdefault((record.kind, record.name), record) != record:
                    raise _fault(f"registers {record.kind}/{record.name} twice")
    if unstated:
        text = f"{status.label} states no api_version of {', '.join(unstated)}; add api_version=1"
        warnings.warn(text, FutureWarning, stacklevel=3)  # a DeprecationWarning is not shown
    return tuple(records.values())


def _fault(problem: str) -> PluginError:
    return PluginError("plugin", problem, "correct the plugin")


def described(error: BaseException, target: str) -> str:
    """Return an exception in one line, with the file and line of the failing code.

    Args:
        target: a module of the package whose code is named, not the library that it called.
    """
    text = " ".join(str(error).split())
    if isinstance(error, ValidationError):
        text = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
    place, package = "", re.split(r"[.:]", target)[0]
    for frame, line in traceback.walk_tb(error.__traceback__):  # the last match is innermost
        if str(frame.f_globals.get("__name__")).partition(".")[0] == package:
            place = f" ({frame.f_code.co_filename}, line {line})"
    return f"{type(error).__name__}{': ' if text else ''}{text}{place}"
