"""Test that tests see Segue's own components only, unless they ask for more."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from segue.core.plugins import PluginHost, default_host

pytest_plugins = ["pytester"]

FIXTURES = Path(__file__).parent.parent / "plugin_fixtures"
LEFT_OUT = "-p no:schemathesis -p no:hypothesispytest"  # they take long to import


def sources(host: PluginHost) -> list[str]:
    return [status.source for status in host.statuses()]


@pytest.fixture
def good_is_installed(
    monkeypatch: pytest.MonkeyPatch, pytester: pytest.Pytester
) -> pytest.Pytester:
    """A machine with a plugin and a user's registry file, for pytest runs of their own."""
    registry = pytester.makefile(".yaml", **{"segue-registry": "api_version: 1\nhooks: [nowhere]"})
    monkeypatch.setenv("SEGUE_REGISTRY", str(registry))
    monkeypatch.delenv("SEGUE_PLUGINS")
    inherited = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FIXTURES / "good"), inherited]))
    monkeypatch.setenv("PYTEST_ADDOPTS", LEFT_OUT)
    return pytester


ASK = """
    import pytest
    from segue.core.plugins import default_host

    def sources():
        return [status.source.rsplit("/")[-1] for status in default_host().statuses()]
"""
#: At least these: the machine that runs the tests may have plugins of its own.
FOUND = '{"segue-good", "segue-registry.yaml"}'


def test_nothing_installed_is_seen(good_is_installed: pytest.Pytester) -> None:
    good_is_installed.makepyfile(
        ASK
        + """
    @pytest.fixture(scope="session")
    def before_any_test():
        return sources()

    def test_isolated(before_any_test, plugin_host):
        assert before_any_test == sources() == []
        assert plugin_host.records() == default_host().records()

    @pytest.mark.segue_plugins("Segue_Good")
    def test_one_is_asked_for():
        assert sources() == ["segue-good"]

    @pytest.mark.segue_not_isolated
    def test_everything_is_asked_for():
        assert set(sources()) >= FOUND

    def test_isolated_again():
        assert sources() == []
    """.replace("FOUND", FOUND)
    )
    good_is_installed.runpytest_subprocess("--strict-markers").assert_outcomes(passed=4)


@pytest.mark.slow
def test_isolation_can_be_turned_off(good_is_installed: pytest.Pytester) -> None:
    good_is_installed.makeini("[pytest]\nsegue_isolate = false")
    good_is_installed.makepyfile(
        ASK
        + """
    def test_all_is_seen(plugin_host):
        assert set(sources()) >= FOUND
        assert plugin_host.statuses() == ()  # this fixture is isolated all the same
    """.replace("FOUND", FOUND)
    )
    good_is_installed.runpytest_subprocess().assert_outcomes(passed=1)


def test_the_registry_file_of_the_working_directory_is_not_seen(
    good_is_installed: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SEGUE_REGISTRY")
    good_is_installed.makepyfile(
        ASK + "\n    def test_isolated():\n        assert sources() == []\n"
    )
    good_is_installed.runpytest_inprocess().assert_outcomes(passed=1)


@pytest.mark.slow
def test_a_project_without_segue_is_left_alone(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys

        def test_nothing_heavy_was_imported():
            heavy = {"torch", "pydantic", "entrypoints", "yaml", "segue.core.plugins"}
            assert not heavy & set(sys.modules)
        """
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=1)


def test_loading_the_plugin_imports_nothing_of_segue() -> None:
    script = """if True:
        import sys
        import segue.testing.pytest_plugin
        names = {name for name in sys.modules if name.split(".")[0] == "segue"}
        assert names == {"segue", "segue.testing", "segue.testing.pytest_plugin"}, names
    """
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_what_the_run_found_is_put_back(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGUE_REGISTRY", "mine.yaml")
    monkeypatch.setenv("PYTEST_ADDOPTS", LEFT_OUT)
    pytester.makepyfile("import os\ndef test_it():\n    assert not os.environ['SEGUE_REGISTRY']")
    pytester.runpytest_inprocess().assert_outcomes(passed=1)
    assert os.environ["SEGUE_REGISTRY"] == "mine.yaml"


def test_a_test_of_this_run_is_isolated() -> None:
    assert sources(default_host()) == []
    assert os.environ["SEGUE_REGISTRY"] == ""
    command = [sys.executable, "-c", "from segue.core.discovery import *; print(find_plugins())"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"  # processes that it starts are isolated as well


def test_a_plugin_under_test_is_registered(
    plugin_host: PluginHost, install: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a plugin's author would: the module is at hand, its distribution need not be installed."""
    install()  # forgets the module afterwards
    monkeypatch.syspath_prepend(str(FIXTURES / "good"))
    plugin = import_module("segue_good.plugin")
    status = plugin_host.register(plugin, source="segue-good")
    assert (status.label, status.state) == ("segue-good:segue_good.plugin", "ok")
    assert plugin_host.find("metric", "loudness.v1", "metric").source == "segue-good"
    assert "loudness.v1" not in {record.name for record in default_host().records("metric")}
