"""`segue plugins check DISTRIBUTION` names what a package does wrong while it registers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from segue.core.errors import ConfigError
from segue.core.plugins import PluginHost
from segue.testing.distribution import check_named

Install = Callable[..., None]
WriteDistribution = Callable[[str, str, str], Path]

ENTRY_POINTS = "[segue.plugins]\nmain = segue_odd\n"
#: Registers two components; what goes before it is done at import.
REGISTER = """
from segue.core.hookspecs import hookimpl
from segue.core.records import PluginRecord

@hookimpl
def segue_register():
    names = [("codec", "spectral_codec.v1"), ("metric", "loudness.v1"), ("metric", "plain")]
    later = PluginRecord("metric", "later.v1", "a:A", api_version=99)
    return [*(PluginRecord(kind, name, "a:A") for kind, name in names), later]
"""


def checked(timeout: float = 30.0) -> dict[str, str]:
    """Check the distribution with the name that its author might write; problems by check."""
    return {r.name: r.problem for r in check_named(PluginHost(), "Segue.Odd", {}, timeout)}


def test_everything_that_a_package_should_not_do_is_named(
    install: Install, write_distribution: WriteDistribution
) -> None:
    source = (
        "import os, signal, sys, threading, time\n"
        "sys.modules['torch'] = sys\n"  # as if it were imported, which takes long
        "os.write(1, b'hello')\n"
        "print(' world')\n"
        "os.chdir('/')\n"
        "os.environ['ODD'] = '1'\n"
        "signal.signal(signal.SIGINT, lambda *_: None)\n"
        "threading.Thread(target=time.sleep, args=(9,), daemon=True).start()\n"
        "time.sleep(1.05)\n" + REGISTER
    )
    install(write_distribution("segue_odd", source, ENTRY_POINTS), "good")
    found = checked()
    assert found.pop("registers") == ""
    words = {
        "prints_nothing": "prints 'hello world",
        "imports_no_torch": "imports torch",
        "registers_quickly": " s, on every command",
        "stays_in_its_folder": "working directory to /",
        "leaves_the_process_as_it_is": "the handler of SIGINT, environment variables, threads",
        "claims_names_of_its_own": "codec/spectral_codec.v1 is Segue's own, "
        "metric/loudness.v1 is also claimed by segue-good",
        "versions_its_names": "metric/plain: end names in .v1",
        "speaks_this_plugin_api": "metric/later.v1 is for plugin API 99, this host speaks 1",
        "uses_nothing_deprecated": "states no api_version of spectral_codec.v1, loudness.v1, plain",
    }
    assert found.keys() == words.keys()
    for name, word in words.items():
        assert word in found[name]


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ("while True: pass\n", "is not done after 1 s"),
        (
            "import os; os.kill(os.getpid(), 9)\n",
            "ends the process that imports it, with exit code -9",
        ),
        ("raise KeyboardInterrupt\n", "entry point main: KeyboardInterrupt"),
        ("1 / 0\n", "ZeroDivisionError: division by zero ("),
    ],
)
def test_a_package_that_does_not_register_stops_nothing(
    install: Install, write_distribution: WriteDistribution, source: str, word: str
) -> None:
    install(write_distribution("segue_odd", source, ENTRY_POINTS))
    assert word in checked(1.0 if "while" in source else 30.0)["registers"]


def test_a_package_in_order_passes_even_in_safe_mode(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("good")
    monkeypatch.setenv("SEGUE_PLUGINS", "off")
    results = check_named(PluginHost(), "segue-good", {}, 30)
    assert len(results) == 10 and not any(result.problem for result in results)
    with pytest.raises(ConfigError, match="is a distribution"):
        check_named(PluginHost(), "segue-good", {"width": 3}, 30)
