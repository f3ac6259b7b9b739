"""A plugin's fault is reported, concerns that plugin alone and leaves nothing behind."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from segue.core import discovery
from segue.core.discovery import ONE_KIND, PluginStatus
from segue.core.errors import PluginError
from segue.core.hookspecs import hookimpl
from segue.core.plugins import PluginHost, default_host
from segue.core.records import KINDS, PluginRecord

Install = Callable[..., None]
WriteDistribution = Callable[[str, str, str], Path]
WriteRegistry = Callable[[str], Path]

ENTRY_POINTS = "[segue.plugins]\nmain = segue_odd\n"


def by_source(host: PluginHost) -> dict[str, PluginStatus]:
    return {status.source: status for status in host.statuses()}


def test_a_plugin_in_order_offers_its_records(install: Install) -> None:
    install("good")
    host = PluginHost.discover()
    assert "segue_good.plugin" not in sys.modules
    (status,) = host.statuses()
    assert (status.source, status.entry_point, status.state) == ("segue-good", "main", "ok")
    (record,) = status.records
    assert (record.kind, record.name, record.source) == ("metric", "loudness.v1", "segue-good")
    assert not {"segue_good.model", "segue_good.config"} & set(sys.modules)


@pytest.mark.parametrize(
    ("folder", "word"),
    [
        ("broken_import", "a_module_that_nobody_installed"),
        ("exits", "SystemExit: 3"),
        ("bad_signature", "'epoch'"),
        ("unknown_hook", "did you mean 'segue_register_metrics'?"),
    ],
)
def test_a_broken_plugin_is_reported_and_harms_no_other(
    install: Install, folder: str, word: str
) -> None:
    install("good", folder)
    host = PluginHost.discover()
    status = by_source(host)[f"segue-{folder.replace('_', '-')}"]
    assert (status.state, status.records) == ("broken", ())
    assert word in status.error
    assert host.find("metric", "loudness.v1", "metric").source == "segue-good"


def test_a_plugin_is_taken_as_a_whole_or_not_at_all(install: Install) -> None:
    install("bad_signature")
    host = PluginHost.discover()
    assert "half.v1" not in {record.name for record in host.records("metric")}
    host.call_hook("segue_train_step", part="codec", step=1, losses={})


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ("def broken(:\n", "SyntaxError"),
        ("import sys\nsys.exit('stop')\n", "SystemExit: stop"),
        ("raise KeyboardInterrupt\n", "KeyboardInterrupt"),
        ("import os\nos._exit(3)\n", "SystemExit: it called os._exit(3) ("),
        # A child that it forks does end.
        ("import os\nif not os.fork():\n    os._exit(0)\nos.wait()\n1 / 0\n", "ZeroDivisionError"),
        ("", "implements no hook"),
        ("def segue_register_codecs():\n    return []\n", "not decorated"),
        (
            "from segue.core.plugins import default_host\ndefault_host().records()\n",
            "asked for plugins while it was being imported",
        ),
    ],
)
def test_a_fault_at_import_is_data(
    install: Install, write_distribution: WriteDistribution, source: str, word: str
) -> None:
    install(write_distribution("segue_odd", source, ENTRY_POINTS), "good")
    odd, good = sorted(default_host().statuses(), key=lambda status: status.state)
    assert (odd.state, good.state) == ("broken", "ok")
    assert word in odd.error


def test_a_fault_is_shown_with_its_file_and_line(
    install: Install, write_distribution: WriteDistribution
) -> None:
    source = "import json\n\ndef read():\n    return json.loads('{')\n\nread()\n"
    folder = write_distribution("segue_odd", source, ENTRY_POINTS)
    install(folder)
    (status,) = PluginHost.discover().statuses()
    # The plugin's own line, not the one in the library that it called.
    assert status.error.startswith("JSONDecodeError: ")
    assert status.error.endswith(f"({folder / 'segue_odd.py'}, line 4)")


def test_what_a_plugin_prints_does_not_reach_standard_output(
    install: Install, write_distribution: WriteDistribution, capsys: pytest.CaptureFixture[str]
) -> None:
    source = (
        "from segue.core.hookspecs import hookimpl\n"
        "from segue.core.records import PluginRecord\n"
        "print('imported')\n"
        "@hookimpl\n"
        "def segue_register():\n"
        "    print('registering')\n"
        "    return [PluginRecord('metric', 'odd.v1', 'odd_metric:A', api_version=1)]\n"
    )
    folder = write_distribution("segue_odd", source, ENTRY_POINTS)
    (folder / "odd_metric.py").write_text("print('implemented')\n")
    install(folder)
    host = PluginHost.discover()
    with pytest.raises(PluginError):
        host.load(host.find("metric", "odd.v1", "x"), "x")
    out, err = capsys.readouterr()
    assert (out, err.split()) == ("", ["imported", "registering", "implemented"])


def test_a_plugin_that_leaves_the_working_directory_is_named_and_brought_back(
    install: Install,
    write_distribution: WriteDistribution,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    install(write_distribution("segue_odd", "import os\nos.chdir('/')\n", ENTRY_POINTS))
    PluginHost.discover().statuses()
    assert Path.cwd() == tmp_path
    said = f"segue-odd:main changed the working directory; it is {tmp_path} again\n"
    assert capsys.readouterr().err == said


def test_a_working_directory_that_is_gone_stops_no_import(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("good")
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert [s.state for s in PluginHost([], discovery.find_plugins()).statuses()] == ["ok"]


def test_a_plugin_that_is_imported_for_long_is_named(
    install: Install,
    write_distribution: WriteDistribution,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(discovery, "PATIENCE", 0.01)
    install(write_distribution("segue_odd", "import time\ntime.sleep(0.1)\n", ENTRY_POINTS))
    PluginHost.discover().statuses()
    err = capsys.readouterr().err
    assert err.startswith("still importing segue-odd:main") and "SEGUE_PLUGINS=off" in err


def metric(name: str = "a.v1", **fields: object) -> PluginRecord:
    values: dict[str, Any] = {"kind": "metric", "name": name, "target": "m:A", "api_version": 1}
    return PluginRecord(**{**values, **fields})


@pytest.mark.parametrize(
    ("register", "word"),
    [
        (lambda: None, "returned None"),
        (lambda: "metric", "returned 'metric'"),
        (lambda: ["metric"], "not a PluginRecord"),
        (lambda: [metric(kind="kodec")], "kind: "),
        (lambda: [metric("a/b")], "'a/b' is not a name"),
        (lambda: [metric(target="m.A")], "'m.A' is not a target"),
        (lambda: [metric(target="")], "'' is not a target"),
        (lambda: [metric(config="m.A")], "'m.A' is not a target"),
        (lambda: [metric(summary=3)], "summary: "),
        (lambda: [metric(api_version="1")], "api_version: "),
        (lambda: [metric(api_version=True)], "api_version: "),
        (lambda: [metric(api_version=1.0)], "api_version: "),
        (lambda: [metric(api_version=None)], "api_version: "),
        (lambda: [metric(), metric(target="m:B")], "registers metric/a.v1 twice"),
        (lambda: {}["weights"], "KeyError: 'weights'"),
    ],
)
def test_a_wrong_answer_breaks_its_plugin(
    plugin_host: PluginHost, register: Callable[[], object], word: str
) -> None:
    before = plugin_host.records()
    with pytest.raises(PluginError) as caught:
        plugin_host.register(SimpleNamespace(segue_register=hookimpl(register)))
    assert word in caught.value.problem
    assert plugin_host.records() == before
    assert plugin_host.statuses() == ()


@pytest.mark.parametrize("version", [-1, 0])
def test_an_api_version_below_1_is_refused(plugin_host: PluginHost, version: int) -> None:
    stated = metric(api_version=version)
    plugin_host.register(SimpleNamespace(segue_register=hookimpl(lambda: [stated])), source="mine")
    with pytest.raises(PluginError, match=f"needs plugin API {version}, this host speaks 1"):
        plugin_host.find("metric", "a.v1", "x")


def test_a_class_is_not_a_plugin(plugin_host: PluginHost) -> None:
    class Plugin:
        @hookimpl
        def segue_train_step(self, step: int) -> None: ...

    with pytest.raises(PluginError, match="is a class"):
        plugin_host.register(Plugin)


def test_one_hook_registers_every_kind(plugin_host: PluginHost) -> None:
    records = [metric("mine.v1", kind=kind) for kind in KINDS]
    plugin = SimpleNamespace(segue_register=hookimpl(lambda: records))
    plugin_host.register(plugin, source="mine")
    for kind in KINDS:
        assert plugin_host.find(kind, "mine.v1", "x").source == "mine"


@pytest.mark.parametrize(("hook", "kind"), ONE_KIND.items())
def test_the_hooks_of_version_0_1_work_and_warn(
    plugin_host: PluginHost, hook: str, kind: str
) -> None:
    plugin = SimpleNamespace(**{hook: hookimpl(lambda: [metric("mine.v1", kind=kind)])})
    with pytest.warns(DeprecationWarning, match="segue_register"):
        plugin_host.register(plugin, source="mine")
    assert plugin_host.find(kind, "mine.v1", "x").source == "mine"  # type: ignore[arg-type]
    wrong = SimpleNamespace(**{hook: hookimpl(lambda: [metric(kind="other")])})
    with pytest.warns(DeprecationWarning), pytest.raises(PluginError):
        plugin_host.register(wrong)


def test_an_installed_plugin_of_the_old_form_works_and_warns(install: Install) -> None:
    install("old_form")
    host = PluginHost.discover()
    with pytest.warns() as warned:
        (status,) = host.statuses()
    assert status.state == "ok"
    assert {record.kind for record in status.records} == {"codec", "metric"}
    assert host.find("codec", "old_form.v1", "codec").api_version == 1
    hooks = [w for w in warned if w.category is DeprecationWarning]
    assert {str(w.message).split()[-1] for w in hooks} == {"kinds"}
    assert {Path(w.filename).name for w in hooks} == {"segue_old_form.py"}
    (unstated,) = [w for w in warned if w.category is FutureWarning]  # shown to users, once
    text = "segue-old-form:main states no api_version of old_form.v1, old_form.v1"
    assert str(unstated.message).startswith(text)


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
    assert "segue-good:main" in again.error
    host.call_hook("segue_train_step", part="codec", step=7, losses={})
    assert sys.modules["segue_good.plugin"].STEPS == [7]


def test_entry_points_can_be_left_out(install: Install) -> None:
    install("good")
    assert PluginHost.discover(entry_points=False).statuses() == ()


def test_names_in_a_registry_file_that_nothing_has_are_reported(
    install: Install, write_registry: WriteRegistry
) -> None:
    install("good")
    path = write_registry(
        "blocked: [segue-godo, 'segue-good:man', codec/spectral_codc.v1, metric/loudness.v1]\n"
        "pins: {metric/si_sdr.v2: segue, codec/spectral_codec.v1: segue}\n"
    )
    good, *unknown = PluginHost.discover(registry=path).statuses()
    assert good.state == "ok" and {status.state for status in unknown} == {"unknown"}
    assert {status.source for status in unknown} == {str(path)}
    assert [status.error for status in unknown] == [
        f"blocks or pins {name}, which is not installed here; did you mean {meant!r}?"
        for name, meant in (
            ("metric/si_sdr.v2", "metric/si_sdr.v1"),
            ("segue-godo", "segue-good"),
            ("segue-good:man", "segue-good:main"),
            ("codec/spectral_codc.v1", "codec/spectral_codec.v1"),
        )
    ]
