"""The plugin host: which components exist, who offers them, and how one is built.

Imports no torch: only ``load`` and ``create`` import an implementation, and only the one asked for.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pluggy

from segue.core import claims, loading
from segue.core.activation import (
    ActivePlugin,
    PluginStatus,
    import_plugin,
    joint_manager,
    try_plugin,
)
from segue.core.discovery import FoundPlugin, find_entry_points, surroundings
from segue.core.errors import PluginError, SegueError
from segue.core.options import Options
from segue.core.records import Kind, PluginRecord
from segue.core.registry import (
    Registry,
    first_party_registry,
    read_registry,
    user_registry_path,
)
from segue.core.validation import validate

__all__ = ["PluginHost", "PluginStatus", "default_host", "reset_default_host"]


class PluginHost:
    """Everything that plugins and registry files offer.

    Nothing is imported until something is asked for; then every plugin's registering module is
    (they import no torch), and of the components only the one that is asked for.

    Args:
        registries: Segue's own and possibly the user's; the pins of the last one win.
        plugins: what was found installed, not imported yet.
    """

    def __init__(
        self, registries: Sequence[Registry] = (), plugins: Sequence[FoundPlugin] = ()
    ) -> None:
        self._rules = claims.Rules.of(registries)
        local = [
            FoundPlugin(registry.source, hook, hook)
            for registry in registries
            for hook in registry.hooks
        ]
        self._found = (*plugins, *local)
        self._named = tuple(record for registry in registries for record in registry.records)
        self._statuses: list[PluginStatus] = []
        self._active: list[ActivePlugin] = []
        self._manager = joint_manager(())
        self._progress = "asleep"
        self._lock = threading.RLock()

    @classmethod
    def discover(cls, *, entry_points: bool = True, registry: Path | None = None) -> PluginHost:
        """A host of what this installation and the user's registry file offer; imports none of it.

        Args:
            entry_points: look for installed distributions with plugins.
            registry: the user's file; by default the one that ``SEGUE_REGISTRY`` names, or
                ``segue-registry.yaml`` or ``registry.yaml`` in the working directory.

        Raises:
            ConfigError: if a registry file cannot be used.
            PluginError: if it was written for another plugin API.
        """
        path = registry or user_registry_path(surroundings().search_directory)
        files = [first_party_registry(), *([] if path is None else [read_registry(path)])]
        return cls(files, find_entry_points() if entry_points else ())

    def activate(self) -> None:
        """Import every plugin that is not blocked. Called by whatever needs it; failures are data.

        Raises:
            PluginError: if a plugin asks for plugins while it is being imported.
        """
        with self._lock:
            if self._progress == "done":
                return
            if self._progress == "busy":
                raise PluginError(
                    "plugins",
                    "a plugin asked for plugins while it was being imported",
                    "let its entry point's module register only",
                )
            self._progress = "busy"
            try:
                for found in self._found:
                    self._add(*self._try(found))
                self._manager = joint_manager(self._active)
            except BaseException:  # interrupted: the next one to ask starts anew
                self._progress, self._statuses, self._active = "asleep", [], []
                raise
            self._progress = "done"

    def register(self, plugin: object, source: str = "registered") -> PluginStatus:
        """Add a plugin that is at hand: a module or an object with hooks.

        Raises:
            PluginError: if it is broken.
        """
        self.activate()
        name = getattr(plugin, "__name__", type(plugin).__name__)
        status = self._add(*try_plugin(plugin, source, name))
        if status.state == "broken":
            self._statuses.remove(status)
            raise PluginError(status.label, status.error, "mend the plugin")
        self._manager = joint_manager(self._active)
        return status

    def statuses(self) -> tuple[PluginStatus, ...]:
        """What became of each plugin, in the order they are called."""
        self.activate()
        return tuple(self._statuses)

    def records(self, kind: Kind | None = None) -> tuple[PluginRecord, ...]:
        """Every component that is offered and not blocked, sorted; all claimants of a name."""
        records = [r for r in self._claims() if kind in (None, r.kind)]
        usable = (record for record in records if self._rules.blocker(record) is None)
        return tuple(sorted(usable, key=lambda record: (record.kind, record.name, record.source)))

    def find(self, kind: Kind, name: str, place: str) -> PluginRecord:
        """The one component of that kind and name.

        Raises:
            PluginError: if there is none, it is blocked, several claim the name and none is
                pinned, or it speaks another plugin API.
        """
        return claims.choose(kind, name, self._claims(), self._rules, self.statuses(), place)

    def options(self, kind: Kind, name: str, values: Mapping[str, Any], place: str) -> Options:
        """Validate a component's options against its model; the implementation is not imported.

        Args:
            place: where the options stand, such as ``codec.options``.

        Raises:
            ConfigError: with the path of the wrong value.
            PluginError: if the component or its model cannot be had.
        """
        stem = place.removesuffix(".options")
        record = self.find(kind, name, place if stem == place else f"{stem}.use")
        return validate(loading.options_model(record, place), values, place)

    def load(self, record: PluginRecord, place: str) -> Any:
        """The implementation that a record names, checked against its contract.

        Raises:
            PluginError: if it cannot be imported, lacks an extra or breaks its contract.
        """
        return loading.load_target(record, place)

    def create(
        self,
        kind: Kind,
        name: str,
        options: Mapping[str, Any] | Options,
        *arguments: object,
        place: str,
    ) -> Any:
        """Build a component: ``Implementation(options, *arguments)``.

        Args:
            options: values that are validated first, or an instance of the component's model.
            arguments: what the kind gets besides; a stage language model its ``StageSpec``.
            place: which part it is to become, such as ``stages.coarse``.

        Raises:
            ConfigError: if the options are wrong.
            PluginError: if the component cannot be had or cannot be built.
        """
        record = self.find(kind, name, place)
        model = loading.options_model(record, place)
        if not isinstance(options, model):
            values = options.model_dump() if isinstance(options, Options) else options
            options = validate(model, values, f"{place}.options")
        return loading.build(record, self.load(record, place), options, arguments, place)

    @property
    def hook(self) -> pluggy.HookRelay:
        """pluggy's relay: ``host.hook.segue_train_step(...)``; see ``call_hook``."""
        self.activate()
        return self._manager.hook

    def call_hook(self, name: str, **arguments: object) -> None:
        """Call a lifecycle hook of every plugin, in their order, until one raises.

        Raises:
            SegueError: what a plugin raised on purpose.
            PluginError: naming the plugin that failed with anything else.
        """
        caller = getattr(self.hook, name)
        promised = set(caller.spec.argnames)
        if promised != set(arguments):
            raise TypeError(f"{name} takes {sorted(promised)}, not {sorted(arguments)}")
        for implementation in reversed(caller.get_hookimpls()):  # as pluggy would call them
            try:
                implementation.function(*(arguments[key] for key in implementation.argnames))
            except SegueError:
                raise
            except Exception as error:
                raise PluginError(
                    name,
                    f"plugin {implementation.plugin_name} failed: {loading.described(error)}",
                    "report it to its author, or take it out of use in your registry file",
                ) from error

    def _claims(self) -> Iterable[PluginRecord]:
        return (*self._named, *(r for status in self.statuses() for r in status.records))

    def _try(self, found: FoundPlugin) -> tuple[PluginStatus, ActivePlugin | None]:
        file = self._rules.blocks_plugin(found)
        if file is not None:
            error = f"blocked by {file}"
            return PluginStatus(found.source, found.entry_point, "blocked", error), None
        return import_plugin(found)

    def _add(self, status: PluginStatus, active: ActivePlugin | None) -> PluginStatus:
        """Keep what became of a plugin; one object is never called twice."""
        twin = next((a for a in self._active if active and a.plugin is active.plugin), None)
        if twin is not None:
            error = f"is the same plugin as {twin.label}; uninstall or block one of the two"
            status = PluginStatus(status.source, status.entry_point, "broken", error)
        elif active is not None:
            self._active.append(active)
        self._statuses.append(status)
        return status


_default: PluginHost | None = None
_default_lock = threading.Lock()


def default_host() -> PluginHost:
    """The host of this process, discovered when it is first asked for."""
    global _default
    with _default_lock:
        if _default is None:
            _default = PluginHost.discover()
        return _default


def reset_default_host() -> None:
    """Forget the process-wide host, so that the next one discovers anew; for tests."""
    global _default
    with _default_lock:
        _default = None
