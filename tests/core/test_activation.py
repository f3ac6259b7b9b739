"""What a plugin does wrong is reported, concerns it alone and leaves nothing behind."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from segue.core.activation import REGISTERING
from segue.core.hookspecs import hookimpl
from segue.core.manager import PluginHost, PluginStatus
from segue.core.records import PluginRecord

Install = Callable[..., None]
WriteDistribution = Callable[[str, str, str], Path]
WriteRegistry = Callable[[str], Path]


def by_source(host: PluginHost) -> dict[str, PluginStatus]:
    return {status.source: status for status in host.statuses()}


def test_a_plugin_in_order_offers_its_records(install: Install) -> None:
    install("good")
    (status,) = PluginHost.discover().statuses()
    assert (status.source, status.entry_point, status.state) == ("segue-good", "main", "ok")
    (record,) = status.records
    assert (record.kind, record.name, record.source) == ("metric", "loudness.v1", "segue-good")


def test_registering_imports_no_implementation(install: Install) -> None:
    install("good")
    host = PluginHost.discover()
    assert "segue_good.plugin" not in sys.modules
    host.records()
    assert "segue_good.plugin" in sys.modules
    assert not {"segue_good.model", "segue_good.config"} & set(sys.modules)


@pytest.mark.parametrize(
    ("folder", "told"),
    [
        ("broken_import", "ModuleNotFoundError: No module named 'a_module_that_nobody_installed'"),
        ("exits", "SystemExit: 3"),
        ("bad_signature", "{'epoch'} are declared in the hookimpl but can not be found"),
        ("unknown_hook", "no hook segue_register_metric; did you mean 'segue_register_metrics'?"),
    ],
)
def test_a_broken_plugin_is_reported_and_harms_no_other(
    install: Install, folder: str, told: str
) -> None:
    install("good", folder)
    host = PluginHost.discover()
    status = by_source(host)[f"segue-{folder.replace('_', '-')}"]
    assert (status.state, status.records) == ("broken", ())
    assert told in status.error
    assert host.find("metric", "loudness.v1", "metric").source == "segue-good"


def test_a_plugin_is_taken_as_a_whole_or_not_at_all(install: Install) -> None:
    install("bad_signature")
    host = PluginHost.discover()
    assert "half.v1" not in {record.name for record in host.records("metric")}
    host.call_hook("segue_train_step", part="codec", step=1, losses={})


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("def broken(:\n", "SyntaxError"),
        ("import sys\nsys.exit('stop')\n", "SystemExit: stop"),
        ("raise RuntimeError\n", "RuntimeError"),
        ("", "implements no hook"),
        ("def segue_register_codecs():\n    return []\n", "is not decorated with @segue.core"),
        (
            "from segue.core.manager import default_host\ndefault_host().records()\n",
            "asked for plugins while it was being imported",
        ),
    ],
)
def test_whatever_goes_wrong_at_import_is_data(
    install: Install, write_distribution: WriteDistribution, source: str, told: str
) -> None:
    from segue.core.manager import default_host

    install(write_distribution("segue_odd", source, "[segue.plugins]\nmain = segue_odd\n"))
    (status,) = default_host().statuses()
    assert status.state == "broken"
    assert told in status.error


def metric(name: str = "a.v1", **fields: object) -> PluginRecord:
    values: dict[str, object] = {"kind": "metric", "name": name, "target": "m:A", **fields}
    return PluginRecord(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        (None, "returned None, not a list of PluginRecord"),
        ("metric", "returned 'metric', not a list"),
        (["metric"], "which is no PluginRecord"),
        ([metric(kind="codec")], "'a.v1' is of kind 'codec', not 'metric'"),
        ([metric("a/b")], "'a/b' is no name"),
        ([metric(target="m.A")], "'a.v1' names 'm.A', not 'module:attribute'"),
        ([metric(target="")], "'a.v1' has no target"),
        ([metric(summary=3)], "'a.v1' has a field that is no string"),
        ([metric(api_version="1")], "'a.v1' has api_version '1'"),
        ([metric(), metric(target="m:B")], "registers metric/a.v1 twice"),
    ],
)
def test_what_a_registering_hook_may_not_return(
    plugin_host: PluginHost, returned: object, told: str
) -> None:
    plugin = SimpleNamespace(segue_register_metrics=hookimpl(lambda: returned))
    plugin_host.activate()
    before = plugin_host.records()
    with pytest.raises(Exception, match="mend the plugin") as caught:
        plugin_host.register(plugin)
    assert told in str(caught.value)
    assert plugin_host.records() == before
    assert plugin_host.statuses() == ()


def test_a_hook_that_raises_breaks_its_plugin(plugin_host: PluginHost) -> None:
    def fail() -> list[PluginRecord]:
        raise KeyError("weights")

    with pytest.raises(Exception, match="KeyError: 'weights'"):
        plugin_host.register(SimpleNamespace(segue_register_metrics=hookimpl(fail)))


def test_classes_and_wrappers_are_no_plugins(plugin_host: PluginHost) -> None:
    class Plugin:
        @hookimpl(wrapper=True)
        def segue_train_step(self, step: int):  # type: ignore[no-untyped-def]
            return (yield)

    with pytest.raises(Exception, match="Plugin is a class; name a module or an object"):
        plugin_host.register(Plugin)
    with pytest.raises(Exception, match="wraps a hook, which Segue does not support"):
        plugin_host.register(Plugin())


def test_every_kind_has_its_registering_hook(plugin_host: PluginHost) -> None:
    for hook, kind in REGISTERING.items():
        record = PluginRecord(kind, "mine.v1", "mine.model:Mine")
        plugin = SimpleNamespace(**{hook: hookimpl(lambda record=record: [record])})
        plugin_host.register(plugin, source=f"by-{kind}")
        assert plugin_host.find(kind, "mine.v1", "x").source == f"by-{kind}"


@pytest.mark.parametrize("blocked", ["segue-good", "Segue_Good", "segue-good:main"])
def test_a_blocked_plugin_is_never_imported(
    install: Install, write_registry: WriteRegistry, blocked: str
) -> None:
    install("good", "twice")
    path = write_registry(f"blocked: ['{blocked}']")
    status = by_source(PluginHost.discover(registry=path))["segue-good"]
    assert (status.state, status.error) == ("blocked", f"blocked by {path}")
    assert "segue_twice" in sys.modules
    assert not [name for name in sys.modules if name.startswith("segue_good")]


def test_local_hooks_come_after_installed_ones(
    install: Install, write_registry: WriteRegistry
) -> None:
    install("good", "rival")
    set_aside = write_registry(
        "hooks: [segue_rival.plugin, no_such_module]\nblocked: [segue-rival]"
    )
    statuses = PluginHost.discover(registry=set_aside).statuses()
    assert [(s.label, s.state) for s in statuses] == [
        ("segue-good:main", "ok"),
        ("segue-rival:main", "blocked"),
        (f"{set_aside}:segue_rival.plugin", "ok"),
        (f"{set_aside}:no_such_module", "broken"),
    ]


def test_one_object_is_one_plugin(install: Install, write_registry: WriteRegistry) -> None:
    install("good")
    host = PluginHost.discover(registry=write_registry("hooks: ['segue_good.plugin']"))
    good, again = host.statuses()
    assert (good.state, again.state) == ("ok", "broken")
    assert again.error.startswith("is the same plugin as segue-good:main")
    host.call_hook("segue_train_step", part="codec", step=7, losses={})
    assert sys.modules["segue_good.plugin"].STEPS == [7]


def test_entry_points_can_be_left_out(install: Install) -> None:
    install("good")
    assert PluginHost.discover(entry_points=False).statuses() == ()
