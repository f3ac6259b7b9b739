"""Who may answer to a name: pins, blocks, conflicts and API versions. Imports no torch.

No rule here depends on the order in which plugins were found.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from segue.core.activation import PluginStatus
from segue.core.discovery import FoundPlugin, normalised
from segue.core.errors import PluginError
from segue.core.records import API_VERSION, KINDS, OLDEST_API_VERSION, Kind, PluginRecord
from segue.core.registry import USER_FILES, Registry
from segue.core.validation import suggestion


@dataclass(frozen=True)
class Rules:
    """What registry files say about plugins.

    Attributes:
        pins: ``kind/name`` to the source that wins and the file that says so.
        blocked: a distribution, ``distribution:entry point`` or ``kind/name`` to the file.
    """

    pins: Mapping[str, tuple[str, Path]]
    blocked: Mapping[str, Path]

    @classmethod
    def of(cls, registries: Sequence[Registry]) -> Rules:
        """All rules; the pins of a later file win."""
        return cls(
            {key: (pin, file.path) for file in registries for key, pin in file.pins.items()},
            {_block_key(item): file.path for file in registries for item in file.blocked},
        )

    def blocks_plugin(self, found: FoundPlugin) -> Path | None:
        """The file that blocks a plugin, so that it is never imported."""
        source = normalised(found.source)
        return self.blocked.get(source) or self.blocked.get(f"{source}:{found.entry_point}")

    def blocker(self, record: PluginRecord) -> Path | None:
        """The file that blocks one component."""
        by_name = self.blocked.get(f"{record.kind}/{record.name}")
        return by_name or self.blocked.get(normalised(record.source))


def _block_key(item: str) -> str:
    if item.partition("/")[0] in KINDS:
        return item
    distribution, colon, entry_point = item.partition(":")
    return f"{normalised(distribution)}{colon}{entry_point}"


def choose(
    kind: Kind,
    name: str,
    records: Iterable[PluginRecord],
    rules: Rules,
    statuses: Sequence[PluginStatus],
    place: str,
) -> PluginRecord:
    """The one record that answers to ``kind/name``.

    Raises:
        PluginError: if there is none, it is blocked, several claim the name and none is pinned,
            or it speaks another plugin API.
    """
    key = f"{kind}/{name}"
    of_kind = [record for record in records if record.kind == kind]
    claimants = [record for record in of_kind if record.name == name]
    usable = [record for record in claimants if rules.blocker(record) is None]
    if key in rules.blocked or (claimants and not usable):
        file = rules.blocked.get(key) or rules.blocker(claimants[0])
        fix = "take it off the list `blocked` in that file, or use another"
        raise PluginError(place, f"{key} is blocked by {file}", fix)
    if key in rules.pins:
        usable = [_pinned(key, usable, rules, statuses, place)]
    if not usable:
        known = {record.name for record in of_kind if rules.blocker(record) is None}
        raise PluginError(place, f"there is no {kind} {name!r}", _unknown(name, known, statuses))
    if len(set(usable)) > 1:
        raise _conflict(key, usable, place)
    return _speaking(usable[0], place)


def _pinned(
    key: str,
    claimants: Sequence[PluginRecord],
    rules: Rules,
    statuses: Sequence[PluginStatus],
    place: str,
) -> PluginRecord:
    """The claimant that a pin names; another one never takes its place silently."""
    pin, file = rules.pins[key]
    chosen = [record for record in claimants if _is_source(pin, record.source, file)]
    if len(set(chosen)) > 1:
        raise _conflict(key, chosen, place)
    if not chosen:
        offered = ", ".join(sorted({record.source for record in claimants})) or "nobody"
        raise PluginError(
            place,
            f"{key} is pinned to {pin!r} by {file}, which does not offer it",
            f"offered by {offered}: change the pin or install {pin}{_out_of_order(statuses)}",
        )
    return chosen[0]


def _is_source(pin: str, source: str, file: Path) -> bool:
    """Whether a pin means a source: the same distribution or the same registry file."""
    if normalised(pin) == normalised(source):
        return True
    return Path(source).is_absolute() and (file.parent / pin).resolve() == Path(source).resolve()


def _conflict(key: str, claimants: Iterable[PluginRecord], place: str) -> PluginError:
    told = sorted({(record.source, record.target) for record in claimants})
    sources = sorted({source for source, _ in told})
    who = ", ".join(f"{source} ({target})" for source, target in told)
    if len(sources) == 1:
        fix = f"{sources[0]} claims it more than once: block one of its entry points"
    else:
        lines = " or ".join(f'pins: {{"{key}": "{source}"}}' for source in sources)
        fix = f"choose one in {USER_FILES[0]}: {lines}"
    return PluginError(place, f"{key} is claimed by {who}", fix)


def _speaking(record: PluginRecord, place: str) -> PluginRecord:
    """The record, if it was written for a plugin API that this host speaks."""
    version = record.api_version
    if OLDEST_API_VERSION <= version <= API_VERSION:
        return record
    newer = version > API_VERSION
    fix = (
        f"upgrade Segue, or install an older {record.source}"
        if newer
        else (f"upgrade {record.source}")
    )
    raise PluginError(
        place,
        f"{record.kind}/{record.name} of {record.source} needs plugin API {version}, "
        f"this host speaks {API_VERSION}",
        fix,
    )


def _unknown(name: str, known: Iterable[str], statuses: Sequence[PluginStatus]) -> str:
    names = sorted(known)
    hint = suggestion(name, names)
    if names and not hint.startswith("use one of"):
        hint = f"{hint} known: {', '.join(names)}"
    return (
        f"{hint}{_out_of_order(statuses)}" if names else f"none is known{_out_of_order(statuses)}"
    )


def _out_of_order(statuses: Sequence[PluginStatus]) -> str:
    """Plugins that might have offered it."""
    told = [f"{s.label} is {s.state} ({s.error})" for s in statuses if s.state != "ok"]
    return f"; {'; '.join(told)}" if told else ""
