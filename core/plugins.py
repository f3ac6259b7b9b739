"""Host plugins: which components exist, who offers them, and how one is built.

Imports no torch: only ``load`` and ``create`` import an implementation, and only the one asked for.
No rule here depends on the order in which plugins were found.
"""

from __future__ import annotations

import inspect
import threading
import traceback
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pluggy

from segue.core.discovery import (
    PluginStatus,
    activate,
    contained,
    described,
    find_plugins,
    hook_manager,
    import_target,
    normalised,
)
from segue.core.errors import PluginError, SegueError
from segue.core.options import Options
from segue.core.records import API_VERSION, OLDEST_API_VERSION, Kind, PluginRecord
from segue.core.registry import (
    FIRST_PARTY,
    USER_FILES,
    Registry,
    first_party_registry,
    is_source,
    left_out,
    read_registry,
    unknown_names,
    user_registry_path,
)
from segue.core.validation import suggestion, validate

#: Where a pin is written; a new file needs the line with the API version as well.
_PIN_FILE = f"{USER_FILES[0]} (below the line `api_version: 1`)"

__all__ = ["PluginHost", "PluginStatus", "default_host", "reset_default_host"]


class PluginHost:
    """Hold everything that plugins and registry files offer.

    Nothing is imported until something is asked for. Then the registering module of every plugin
    is imported (they import no torch), and of the components only the one that is asked for.
    """

    def __init__(
        self, registries: Sequence[Registry] = (), plugins: Sequence[PluginStatus] = ()
    ) -> None:
        self._pins = {key: (pin, one.path) for one in registries for key, pin in one.pins.items()}
        self._blocked = {_block_key(item): one.path for one in registries for item in one.blocked}
        self._named = [record for one in registries for record in one.records]
        local = [PluginStatus(one.source, hook, hook) for one in registries for hook in one.hooks]
        self._statuses = [*plugins, *local]
        self._manager = hook_manager(())
        self._activated = self._busy = False
        self._lock = threading.RLock()

    @classmethod
    def discover(cls, *, entry_points: bool = True, registry: Path | None = None) -> PluginHost:
        """Return a host of what this installation and the user's registry file offer.

        Args:
            registry: the user's file; by default the one that ``SEGUE_REGISTRY`` names, or
                ``segue-registry.yaml`` or ``registry.yaml`` in the working directory.

        Raises:
            ConfigError: if a registry file cannot be used.
            PluginError: if it was written for another plugin API.
        """
        path = registry or user_registry_path()
        files = [first_party_registry(), *([] if path is None else [read_registry(path)])]
        return cls(files, find_plugins() if entry_points else ())

    def _activate(self) -> None:
        """Import every plugin that is not blocked, once; failures are data."""
        with self._lock:
            if self._activated:
                return
            if self._busy:
                raise PluginError(
                    "plugins",
                    "a plugin asked for plugins while it was being imported",
                    "let the module that its entry point names only register",
                )
            self._busy = True  # the lock lets in a plugin that asks from this thread
            try:
                tried: list[PluginStatus] = []
                for found in self._statuses:
                    file = self._blocked.get(found.source) or self._blocked.get(found.label)
                    if file is not None:
                        found = replace(found, state="blocked", error=f"blocked by {file}")
                    tried.append(_only_once(activate(found), tried))
                self._settle(tried)
                self._activated = True
            finally:
                self._busy = False

    def _settle(self, statuses: list[PluginStatus]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old hooks: trying the plugin has warned already
            self._manager = hook_manager(s for s in statuses if s.state == "ok")
        self._statuses = statuses

    def register(self, plugin: object, source: str = "registered") -> PluginStatus:
        """Add a plugin that is at hand, a module or an object with hooks, or raise ``PluginError``
        if it is broken."""
        self._activate()
        name = getattr(plugin, "__name__", type(plugin).__name__)
        module = getattr(plugin, "__module__", name)
        status = activate(PluginStatus(source, name, module, plugin=plugin))
        status = _only_once(status, self._statuses)
        if status.state != "ok":
            raise PluginError(status.label, status.error, "correct the plugin")
        self._settle([*self._statuses, status])
        return status

    def statuses(self) -> tuple[PluginStatus, ...]:
        """Return the status of each plugin, in the order of calls, then of names in doubt."""
        self._activate()
        own = {f"{r.kind}/{r.name}" for r in self._named if r.source == FIRST_PARTY}
        others = []
        for key, (_, file) in self._pins.items():
            claimants = [r for r in self.records() if f"{r.kind}/{r.name}" == key]
            try:
                if claimants:
                    self._pinned(key, claimants, key)
            except PluginError as refusal:
                text = f"{refusal.problem}; {refusal.fix}"
                others.append(PluginStatus(str(file), key, state="unknown", error=text))
        for record in self.records():
            key = f"{record.kind}/{record.name}"
            if key in own - self._pins.keys() and record.source != FIRST_PARTY:
                error = (
                    f"claims {key}, a name of Segue's own, which is used instead; to choose this "
                    f'one, write in {_PIN_FILE}: pins: {{"{key}": "{record.source}"}}'
                )
                others.append(PluginStatus(record.source, key, state="overruled", error=error))
        named = {**{key: file for key, (_, file) in self._pins.items()}, **self._blocked}
        return (*self._statuses, *others, *unknown_names(named, self._offered(), self._statuses))

    def records(self, kind: Kind | None = None) -> tuple[PluginRecord, ...]:
        """Return every component that is not blocked, sorted; all claimants of a name."""
        usable = (r for r in self._offered() if kind in (None, r.kind) and not self._blocker(r))
        return tuple(sorted(usable, key=lambda record: (record.kind, record.name, record.source)))

    def kinds_of(self, name: str) -> list[Kind]:
        """Return the kinds of all components of that name, also of blocked ones."""
        return sorted({record.kind for record in self._offered() if record.name == name})

    def find(self, kind: Kind, name: str, place: str, made_by: str = "") -> PluginRecord:
        """Return the one component of that kind and name.

        A pinned claimant wins, then Segue's own.

        Args:
            made_by: the package that offered it when a checkpoint was saved, for errors.

        Raises:
            PluginError: if there is none, it is blocked, several claim the name and none is
                pinned, or it needs another plugin API.
        """
        key = f"{kind}/{name}"
        claimants = [r for r in self._offered() if (r.kind, r.name) == (kind, name)]
        usable = [record for record in claimants if not self._blocker(record)]
        if claimants and not usable:
            fix = "remove it from the list `blocked` in that file, or use another"
            raise PluginError(place, f"{key} is blocked by {self._blocker(claimants[0])}", fix)
        pin, file = self._pins.get(key, ("", None))
        if file is not None and usable:
            usable = self._pinned(key, usable, place)
        else:  # else any plugin could disable the shipped pipelines by claiming a name of theirs
            usable = [record for record in usable if record.source == FIRST_PARTY] or usable
        if not usable:
            known = sorted({record.name for record in self.records(kind)})
            hint = suggestion(name, known) if known else "none is known"
            if hint.startswith("did you mean"):
                hint += f" known: {', '.join(known)}"
            if made_by:
                hint = f"its checkpoint was saved with {made_by}: install that package; {hint}"
            fix = f"{hint}{self._out_of_order()}"
            pinned = "" if file is None else f", which {file} pins to {pin!r}"
            raise PluginError(place, f"there is no {kind} {name!r}{pinned}", fix)
        if len(set(usable)) > 1:
            raise _conflict(key, usable, place)
        (record,) = set(usable)
        if not OLDEST_API_VERSION <= record.api_version <= API_VERSION:
            needs = f"needs plugin API {record.api_version}, this host speaks {API_VERSION}"
            newer = record.api_version > API_VERSION
            fix = f"upgrade {'Segue' if newer else record.source}"
            raise PluginError(place, f"{_full_name(record)} {needs}", fix)
        return record

    def options(self, kind: Kind, name: str, values: Mapping[str, Any], place: str) -> Options:
        """Validate a component's options, which stand at ``place`` (``codec.options``).

        Its implementation is not imported.

        Raises:
            ConfigError: with the path of the wrong value.
            PluginError: if the component or its model cannot be used.
        """
        stem = place.removesuffix(".options")
        record = self.find(kind, name, place if stem == place else f"{stem}.use")
        return validate(self.options_model(record, place), values, place)

    def options_model(self, record: PluginRecord, place: str = "") -> type[Options]:
        """Return the model that checks a component's options, or raise ``PluginError``."""
        if not record.config:
            return Options
        place = place or record.name
        model = _import(record, record.config, place)
        if isinstance(model, type) and issubclass(model, Options):
            return model
        text = f"the options model {record.config} of {_full_name(record)}"
        problem = f"{text} is not a subclass of segue.core.options.Options"
        raise PluginError(place, problem, f"correct {record.source}")

    def load(self, record: PluginRecord, place: str) -> Any:
        """Import the implementation that a record names and check it against its contract.

        Raises:
            PluginError: if it cannot be imported, lacks an extra or breaks its contract.
        """
        target = _import(record, record.target, place)
        if problem := _breach(record.kind, target):
            text = f"{record.target}, {_full_name(record)}, {problem}"
            raise PluginError(place, text, f"correct {record.source}")
        return target

    def create(
        self,
        kind: Kind,
        name: str,
        options: Mapping[str, Any] | Options,
        *arguments: object,
        place: str,
    ) -> Any:
        """Build a component: ``Implementation(options, *arguments)``.

        A metric without an options model is called without options.

        Args:
            options: values that are validated first, or an instance of the component's model.
            arguments: what its kind takes besides; a stage language model takes its ``StageSpec``.
            place: the part that it is to become, such as ``stages.coarse``.

        Raises:
            ConfigError: if the options are wrong.
            PluginError: if the component cannot be found or built.
        """
        record = self.find(kind, name, place)
        model = self.options_model(record, place)
        if not isinstance(options, model):  # options of another model are validated as values
            values = options.model_dump() if isinstance(options, Options) else options
            options = validate(model, values, f"{place}.options")
        target = self.load(record, place)
        if record.config or record.kind not in ("metric", "continuation_metric"):
            arguments = (options, *arguments)
        try:
            return target(*arguments)
        except (SegueError, KeyboardInterrupt):
            raise
        except BaseException as error:  # SystemExit, or a panic of compiled code
            _refuse_without_extra(record, error, described(error, record.target), place)
            text = f"{_full_name(record)} could not be built: {described(error, record.target)}"
            fix = f"check the options, or report it to {record.source}"
            raise PluginError(place, text, fix) from error

    @property
    def hook(self) -> pluggy.HookRelay:
        """pluggy's relay: ``host.hook.segue_train_step(...)``; see ``call_hook``."""
        self._activate()
        return self._manager.hook

    def call_hook(self, name: str, **arguments: object) -> None:
        """Call a lifecycle hook of every plugin, in their order, until one raises.

        Raises:
            SegueError: if a plugin raises one on purpose.
            PluginError: if a plugin fails in another way; it names the plugin.
        """
        caller = getattr(self.hook, name)
        try:
            caller(**arguments)
        except (SegueError, KeyboardInterrupt):
            raise
        except BaseException as error:
            # pluggy does not say which one failed; the traceback does.
            ran = {frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)}
            every = caller.get_hookimpls()
            failed = [one for one in every if getattr(one.function, "__code__", None) in ran]
            names = [one.plugin_name for one in failed or every]
            module = failed[0].function.__module__ if failed else ""
            text = f"plugin {' or '.join(names)} failed: {described(error, module)}"
            raise PluginError(name, text, left_out(names[0])) from error

    def _offered(self) -> Iterable[PluginRecord]:
        self._activate()
        return (*self._named, *(r for status in self._statuses for r in status.records))

    def _blocker(self, record: PluginRecord) -> Path | None:
        """Return the registry file that blocks a component."""
        by_name = self._blocked.get(f"{record.kind}/{record.name}")
        return by_name or self._blocked.get(normalised(record.source))

    def _pinned(self, key: str, usable: list[PluginRecord], place: str) -> list[PluginRecord]:
        """Return the claimants that a pin names; others never take their place silently."""
        pin, file = self._pins[key]
        chosen = [record for record in usable if is_source(pin, record.source, file)]
        if not chosen:
            text = f"{key} is pinned to {pin!r} by {file}, which does not offer it"
            lines = _pins_to(key, {record.source for record in usable})
            fix = f"change that to {lines}, or remove it{self._out_of_order()}"
            raise PluginError(place, text, fix)
        return chosen

    def _out_of_order(self) -> str:
        """Name the plugins that might have offered it."""
        out = [s for s in self._statuses if s.state in ("broken", "blocked")]
        return "".join(f"; {s.label} is {s.state} ({s.error})" for s in out)


def _only_once(status: PluginStatus, others: Iterable[PluginStatus]) -> PluginStatus:
    """Refuse an object that is a plugin already: its hooks must not be called twice."""
    for other in (one for one in others if one.state == status.state == "ok"):
        if other.plugin is status.plugin or other.label == status.label:
            error = f"is the same plugin as {other.label}; uninstall or block one of the two"
            return replace(status, state="broken", error=error, records=())
    return status


def _block_key(item: str) -> str:
    distribution, colon, entry_point = item.partition(":")
    return item if "/" in item else f"{normalised(distribution)}{colon}{entry_point}"


def _conflict(key: str, claimants: Iterable[PluginRecord], place: str) -> PluginError:
    pairs = sorted({(record.source, record.target) for record in claimants})
    sources = sorted({source for source, _ in pairs})
    who = ", ".join(f"{source} ({target})" for source, target in pairs)
    fix = f"choose one in {_PIN_FILE}: {_pins_to(key, sources)}"
    if len(sources) == 1:
        fix = f"{sources[0]} claims it more than once: block one of its entry points"
    return PluginError(place, f"{key} is claimed by {who}", fix)


def _pins_to(key: str, sources: Iterable[str]) -> str:
    """Return a line for a registry file that pins a component to each source."""
    return " or ".join(f'pins: {{"{key}": "{source}"}}' for source in sorted(sources))


def _full_name(record: PluginRecord) -> str:
    return f"{record.kind}/{record.name} of {record.source}"


def _import(record: PluginRecord, target: str, place: str) -> Any:
    try:
        # It changes the whole process: not during the long imports of Segue's own parts.
        with nullcontext() if record.source == FIRST_PARTY else contained(_full_name(record)):
            return import_target(target)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        name, why = _full_name(record), described(error, target)
        text = f"{name} cannot be imported from {target}: {why}"
        missing = (error.name or "") if isinstance(error, ModuleNotFoundError) else ""
        if missing and f"{target.partition(':')[0]}.".startswith(f"{missing}."):
            fix = (
                f"check the target: no module {missing!r} is on Python's path (sys.path); "
                "install the package or set PYTHONPATH"
            )
        else:
            _refuse_without_extra(record, error, why, place)
            fix = f"install what is missing, or report it to {record.source}"
        raise PluginError(place, text, fix) from error


def _refuse_without_extra(record: PluginRecord, error: BaseException, why: str, place: str) -> None:
    """Say how to install what a component lacks, if that is what an error is about."""
    if isinstance(error, ImportError) and record.extra:
        # The extras of a local registry file's components are Segue's.
        local = "/" in record.source or "\\" in record.source
        text = f"{_full_name(record)} needs the extra {record.extra!r}: {why}"
        fix = f"pip install '{FIRST_PARTY if local else record.source}[{record.extra}]'"
        raise PluginError(place, text, fix) from error


def _breach(kind: Kind, target: Any) -> str:
    """Return how an implementation breaks the contract of its kind; empty if it keeps it."""
    from segue.core.domain import Domain

    if kind == "domain":
        return "" if isinstance(target, Domain) else "is not a segue.core.domain.Domain"
    from segue.core import interfaces
    from segue.core.metrics import ContinuationMetric

    base: type[Any] = {
        "semantic_tokenizer": interfaces.SemanticTokenizer,
        "codec": interfaces.AcousticCodec,
        "stage_lm": interfaces.StageLM,
        "metric": interfaces.Metric,
        "continuation_metric": ContinuationMetric,
        "detector": interfaces.Detector,
    }[kind]
    if not (isinstance(target, type) and issubclass(target, base)):
        return f"is not a subclass of {base.__module__}.{base.__name__}"
    if missing := sorted(getattr(target, "__abstractmethods__", ())):
        return f"does not implement {', '.join(missing)}"
    for name in sorted(getattr(base, "__abstractmethods__", ())):
        promised = list(inspect.signature(getattr(base, name)).parameters)
        try:
            inspect.signature(getattr(target, name)).bind(*promised)
        except TypeError as error:
            return f"breaks the contract's signature {name}({', '.join(promised)}): {error}"
    return ""


_default: PluginHost | None = None
_default_lock = threading.Lock()


def default_host() -> PluginHost:
    """Return the host of this process, discovered when it is first asked for."""
    global _default
    with _default_lock:
        _default = _default or PluginHost.discover()
        return _default


def reset_default_host() -> None:
    """Forget the host of this process, so that the next one discovers anew; for tests."""
    global _default
    _default = None
