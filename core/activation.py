"""Import plugins, check their hooks and collect their records. Imports no torch.

Whatever a plugin does wrong becomes data (``PluginStatus``) and concerns that plugin alone: it is
tried in a hook manager of its own, and joins the others only when all of it is in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import pluggy

from segue.core import hookspecs
from segue.core.discovery import FoundPlugin
from segue.core.errors import PluginError
from segue.core.loading import described, import_target
from segue.core.records import KINDS, Kind, PluginRecord
from segue.core.registry import NAME, TARGET
from segue.core.validation import suggestion

#: Hook that registers components → their kind.
REGISTERING: dict[str, Kind] = {f"segue_register_{kind}s": kind for kind in KINDS}
HOOKS = frozenset(name for name in vars(hookspecs) if name.startswith("segue_"))


@dataclass(frozen=True)
class PluginStatus:
    """What became of one plugin.

    Attributes:
        source: the distribution or registry file that names it.
        entry_point: the name of its entry point, or its module.
        state: ``ok``, ``broken`` (it is left out) or ``blocked`` (it was never imported).
        error: why it is not ``ok``.
        records: the components it registered.
    """

    source: str
    entry_point: str
    state: Literal["ok", "broken", "blocked"]
    error: str = ""
    records: tuple[PluginRecord, ...] = ()

    @property
    def label(self) -> str:
        return f"{self.source}:{self.entry_point}"


@dataclass(frozen=True)
class ActivePlugin:
    """A plugin that is in order: its label and the object that implements its hooks."""

    label: str
    plugin: object


def new_manager() -> pluggy.PluginManager:
    """A hook manager that knows Segue's hooks and no plugin."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    return manager


def joint_manager(plugins: Iterable[ActivePlugin]) -> pluggy.PluginManager:
    """A hook manager that calls ``plugins`` in their order."""
    manager = new_manager()
    for active in reversed(list(plugins)):  # pluggy calls the plugin registered last first
        manager.register(active.plugin, name=active.label)
    return manager


def import_plugin(found: FoundPlugin) -> tuple[PluginStatus, ActivePlugin | None]:
    """Import a plugin that was found and try it; see ``try_plugin``."""
    if found.error:
        return PluginStatus(found.source, found.entry_point, "broken", found.error), None
    try:
        plugin = import_target(found.target)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plugin may even call sys.exit() when imported
        return PluginStatus(found.source, found.entry_point, "broken", described(error)), None
    return try_plugin(plugin, found.source, found.entry_point)


def try_plugin(
    plugin: object, source: str, entry_point: str
) -> tuple[PluginStatus, ActivePlugin | None]:
    """Check a plugin's hooks and collect its records.

    Returns:
        its status, and the plugin itself if it is in order.
    """
    try:
        records = _collect(plugin, source, entry_point)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        text = error.problem if isinstance(error, PluginError) else described(error)
        return PluginStatus(source, entry_point, "broken", text), None
    status = PluginStatus(source, entry_point, "ok", records=records)
    return status, ActivePlugin(status.label, plugin)


def _collect(plugin: object, source: str, entry_point: str) -> tuple[PluginRecord, ...]:
    manager = new_manager()
    _check_hooks(manager, plugin)
    try:
        manager.register(plugin, name=f"{source}:{entry_point}")
    except pluggy.PluginValidationError as error:
        raise _wrong(" ".join(str(error).split())) from error
    records: dict[tuple[str, str], PluginRecord] = {}
    for hook, kind in REGISTERING.items():
        for record in _registered(manager, hook, kind):
            record = replace(record, source=source)
            if records.setdefault((record.kind, record.name), record) != record:
                raise _wrong(f"{hook} registers {record.kind}/{record.name} twice")
    return tuple(records.values())


def _check_hooks(manager: pluggy.PluginManager, plugin: object) -> None:
    """Every hook it implements exists, is marked and is a plain function or method."""
    if isinstance(plugin, type):
        raise _wrong(f"{plugin.__name__} is a class; name a module or an object")
    implemented = 0
    for name in dir(plugin):
        options = manager.parse_hookimpl_opts(plugin, name)
        if options is None:
            if name in HOOKS and callable(getattr(plugin, name)):
                raise _wrong(f"{name} is not decorated with @segue.core.hookspecs.hookimpl")
            continue
        hook = options["specname"] or name
        if hook not in HOOKS and not options["optionalhook"]:
            raise _wrong(f"there is no hook {hook}; {suggestion(hook, HOOKS)}")
        if options["wrapper"] or options["hookwrapper"]:
            raise _wrong(
                f"{name} wraps a hook, which Segue does not support; use tryfirst, trylast"
            )
        implemented += 1
    if not implemented:
        raise _wrong("implements no hook")


def _registered(manager: pluggy.PluginManager, hook: str, kind: Kind) -> Iterator[PluginRecord]:
    for implementation in getattr(manager.hook, hook).get_hookimpls():
        returned = implementation.function()
        if not isinstance(returned, list | tuple):
            raise _wrong(f"{hook} returned {returned!r}, not a list of PluginRecord")
        for record in returned:
            yield _checked(record, hook, kind)


def _checked(record: object, hook: str, kind: Kind) -> PluginRecord:
    if not isinstance(record, PluginRecord):
        raise _wrong(f"{hook} returned {record!r}, which is no PluginRecord")
    told = f"{hook}: {record.name!r}"
    if record.kind != kind:
        raise _wrong(f"{told} is of kind {record.kind!r}, not {kind!r}")
    if type(record.api_version) is not int:
        raise _wrong(f"{told} has api_version {record.api_version!r}, not a whole number")
    texts = (record.name, record.target, record.config, record.summary, record.extra)
    if not all(isinstance(text, str) for text in texts):
        raise _wrong(f"{told} has a field that is no string")
    if not NAME.fullmatch(record.name):
        raise _wrong(f"{told} is no name; use letters, digits, '_', '.' and '-'")
    for text in filter(None, (record.target, record.config)):
        if not TARGET.fullmatch(text):
            raise _wrong(f"{told} names {text!r}, not 'module:attribute'")
    if not record.target:
        raise _wrong(f"{told} has no target")
    return record


def _wrong(problem: str) -> PluginError:
    return PluginError("plugin", problem, "mend the plugin")
