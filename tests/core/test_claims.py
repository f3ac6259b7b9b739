"""Test who answers to a name: unknown names, conflicts, pins, blocks and API versions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import registering

from segue.core.errors import PluginError
from segue.core.plugins import PluginHost
from segue.core.records import Kind
from segue.testing.distribution import check_component

Install = Callable[..., None]
WriteRegistry = Callable[[str], Path]
WriteDistribution = Callable[[str, str, str], Path]

LOUDNESS = "plugins: {metric: {loudness.v1: {target: 'my_metrics:Loudness'}}}\n"


def refusal(host: PluginHost, kind: Kind, name: str) -> str:
    with pytest.raises(PluginError) as caught:
        host.find(kind, name, "codec.use")
    assert caught.value.place == "codec.use"
    return str(caught.value)


def test_an_unknown_name_is_refused_with_the_known_ones(plugin_host: PluginHost) -> None:
    text = refusal(plugin_host, "stage_lm", "flat_transfromer.v1")
    assert "did you mean 'flat_transformer.v1'?" in text
    assert "delay_transformer.v1" in text
    assert "dac.v1, encodec.v1, " in refusal(plugin_host, "codec", "zzz")
    assert "none is known" in refusal(PluginHost(), "codec", "zzz")


def test_an_unknown_name_may_belong_to_a_plugin_that_is_out_of_order(
    install: Install, write_registry: WriteRegistry
) -> None:
    install("broken_import", "good")
    path = write_registry("blocked: [segue-good]")
    text = refusal(PluginHost.discover(registry=path), "codec", "nowhere.v1")
    assert "segue-broken-import:main is broken (ModuleNotFoundError: No module named" in text
    assert f"segue-good:main is blocked (blocked by {path})" in text


def test_a_conflict_lists_every_claimant_and_the_line_that_ends_it(
    install: Install, write_registry: WriteRegistry
) -> None:
    install("good", "rival")
    path = write_registry(LOUDNESS)
    host = PluginHost.discover(registry=path)
    text = refusal(host, "metric", "loudness.v1")
    assert f"is claimed by {path} (my_metrics:Loudness), segue-good (segue_good.model:" in text
    assert "segue-rival (segue_rival.model:Loudness)" in text
    for source in (path, "segue-good", "segue-rival"):
        assert f'pins: {{"metric/loudness.v1": "{source}"}}' in text
    claimants = [record for record in host.records("metric") if record.name == "loudness.v1"]
    assert [record.source for record in claimants] == [str(path), "segue-good", "segue-rival"]


def test_a_conflict_does_not_depend_on_the_order(install: Install) -> None:
    install("good", "rival")
    one = refusal(PluginHost.discover(), "metric", "loudness.v1")
    install("rival", "good")
    assert refusal(PluginHost.discover(), "metric", "loudness.v1") == one


@pytest.mark.parametrize(
    ("pin", "winner"),
    [
        ("segue-good", "segue-good"),
        ("Segue_Rival", "segue-rival"),
        ("segue-registry.yaml", "{path}"),
        ("{path}", "{path}"),
    ],
)
def test_a_pin_chooses(
    install: Install, write_registry: WriteRegistry, tmp_path: Path, pin: str, winner: str
) -> None:
    install("good", "rival")
    path = tmp_path / "segue-registry.yaml"
    write_registry(f"{LOUDNESS}pins: {{metric/loudness.v1: '{pin.format(path=path)}'}}")
    found = PluginHost.discover(registry=path).find("metric", "loudness.v1", "metric")
    assert found.source == winner.format(path=path)


def test_a_first_party_name_wins_and_the_claim_is_reported(
    install: Install, write_registry: WriteRegistry, write_distribution: WriteDistribution
) -> None:
    source = registering("codec", {"spectral_codec.v1": "a:A"})
    install(write_distribution("segue_greedy", source, "[segue.plugins]\nmain = segue_greedy\n"))
    host = PluginHost.discover()
    assert host.find("codec", "spectral_codec.v1", "codec").source == "segue"
    plugin, claim = host.statuses()
    assert (plugin.state, claim.source, claim.state) == ("ok", "segue-greedy", "overruled")
    line = claim.error[claim.error.index("pins:") :]
    host = PluginHost.discover(registry=write_registry(line))
    assert host.find("codec", "spectral_codec.v1", "codec").source == "segue-greedy"
    assert [status.state for status in host.statuses()] == ["ok"]


def test_a_first_party_name_can_be_replaced_by_a_pin(write_registry: WriteRegistry) -> None:
    own = "plugins: {codec: {spectral_codec.v1: {target: 'mine:Codec'}}}\n"
    path = write_registry(own)
    (claim,) = PluginHost.discover(registry=path).statuses()
    assert (claim.source, claim.state) == (str(path), "overruled")
    for pin, target in (("segue", "segue.plugins."), ("segue-registry.yaml", "mine:Codec")):
        path = write_registry(f"{own}pins: {{codec/spectral_codec.v1: {pin}}}")
        found = PluginHost.discover(registry=path).find("codec", "spectral_codec.v1", "codec")
        assert found.target.startswith(target)


def test_what_is_pinned_is_never_replaced_by_another(
    install: Install, write_registry: WriteRegistry
) -> None:
    install("good")
    path = write_registry("pins: {metric/loudness.v1: segue-rival}")
    host = PluginHost.discover(registry=path)
    text = refusal(host, "metric", "loudness.v1")
    assert f"is pinned to 'segue-rival' by {path}" in text
    assert 'change that to pins: {"metric/loudness.v1": "segue-good"}, or remove it' in text
    _, unknown = host.statuses()
    assert unknown.state == "unknown" and unknown.error in text


def test_a_component_can_be_blocked_by_its_name(
    install: Install, write_registry: WriteRegistry
) -> None:
    install("good")
    path = write_registry("blocked: [metric/loudness.v1]")
    host = PluginHost.discover(registry=path)
    text = refusal(host, "metric", "loudness.v1")
    assert f"metric/loudness.v1 is blocked by {path}" in text
    assert "loudness.v1" not in {record.name for record in host.records()}


def test_blocking_a_rival_ends_a_conflict(install: Install, write_registry: WriteRegistry) -> None:
    install("good", "rival")
    host = PluginHost.discover(registry=write_registry("blocked: [segue-rival]"))
    assert host.find("metric", "loudness.v1", "metric").source == "segue-good"


@pytest.mark.parametrize(
    ("folder", "version", "fix"),
    [("old_api", 0, "upgrade segue-old-api"), ("new_api", 2, "upgrade Segue")],
)
def test_another_plugin_api_is_listed_but_refused(
    install: Install, folder: str, version: int, fix: str
) -> None:
    install(folder)
    host = PluginHost.discover()
    name = f"{folder.removesuffix('_api')}.v1"
    assert name in {record.name for record in host.records("codec")}
    text = refusal(host, "codec", name)
    assert f"needs plugin API {version}, this host speaks 1" in text
    assert fix in text
    with pytest.raises(PluginError, match=f"^{name}: "):
        check_component(host, name, {"width": 3})
