"""Test what registry files may say, where they are found and how they are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from segue.core.errors import ConfigError, PluginError
from segue.core.records import KINDS, PluginRecord
from segue.core.registry import (
    first_party_registry,
    read_registry,
    user_registry_path,
)

WriteRegistry = Callable[[str], Path]

FULL = """
plugins:
  codec:
    mine.v1: {target: "my_codec.model:Codec", config: "my_codec.config:Options", summary: "my own"}
hooks: [my_hooks, "my_hooks:watermark"]
pins: {"codec/mine.v1": some-distribution}
blocked: [other-distribution, "third:main", "metric/slow.v1"]
"""


def test_a_file_is_read_in_full(write_registry: WriteRegistry) -> None:
    path = write_registry(FULL)
    registry = read_registry(path)
    assert registry.records == (
        PluginRecord(
            "codec",
            "mine.v1",
            "my_codec.model:Codec",
            config="my_codec.config:Options",
            summary="my own",
            api_version=1,
            source=str(path),
        ),
    )
    assert registry.hooks == ("my_hooks", "my_hooks:watermark")
    assert registry.pins == {"codec/mine.v1": "some-distribution"}
    assert registry.blocked == ("other-distribution", "third:main", "metric/slow.v1")


def test_sections_may_be_absent_or_empty(write_registry: WriteRegistry) -> None:
    registry = read_registry(write_registry("plugins:\nhooks:\n"))
    assert (registry.records, registry.hooks, registry.blocked) == ((), (), ())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("plugns: {}", "plugns: unknown key; did you mean 'plugins'?"),
        ("plugins: {codek: {}}", "plugins.codek: unknown key; did you mean 'codec'?"),
        (
            "plugins: {codec: {a.v1: {targt: 'm:A'}}}",
            "plugins.codec.a.v1.targt: unknown key; did you mean 'target'?",
        ),
        ("plugins: {codec: {a.v1: {config: 'm:A'}}}", "plugins.codec.a.v1.target: is missing"),
        (
            "plugins: {codec: {a.v1: {target: 'm.A'}}}",
            "plugins.codec.a.v1.target: 'm.A' is not a target",
        ),
        ("plugins: {codec: {'a b': {target: 'm:A'}}}", "plugins.codec.a b: 'a b' is not a name"),
        ("hooks: ['my-hooks']", "hooks.0: 'my-hooks' is not a module"),
        ("hooks: my_hooks", "hooks: is 'my_hooks'"),
        (
            "pins: {codecs/a.v1: d}",
            "pins.codecs/a.v1: 'codecs/a.v1' starts with no kind; did you mean 'codec'",
        ),
        ("pins: {codec: d}", "pins.codec: 'codec' names no component"),
        ("blocked: [cdec/a]", "blocked.0: 'cdec/a' starts with no kind; did you mean 'codec'?"),
    ],
)
def test_what_a_file_may_not_say(write_registry: WriteRegistry, text: str, told: str) -> None:
    path = write_registry(text)
    with pytest.raises(ConfigError) as caught:
        read_registry(path)
    assert str(caught.value).startswith(f"{path}: {told}")


def test_yaml_that_cannot_be_parsed_is_told_with_its_line(write_registry: WriteRegistry) -> None:
    path = write_registry("plugins:\n  codec: [\n")
    with pytest.raises(ConfigError, match=r"segue-registry.yaml, line \d: "):
        read_registry(path)


def test_a_key_written_twice_is_refused(write_registry: WriteRegistry) -> None:
    with pytest.raises(ConfigError, match=r"line 3: .*the key 'blocked' is there twice"):
        read_registry(write_registry("blocked: [a]\nblocked: [b]\n"))


def test_yaml_tags_build_no_objects(write_registry: WriteRegistry) -> None:
    with pytest.raises(ConfigError, match="valid YAML"):
        read_registry(write_registry("hooks: !!python/object/apply:os.getcwd []"))


@pytest.mark.parametrize("text", ["", "- 1", "word"])
def test_a_file_that_holds_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "registry.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="holds no mapping"):
        read_registry(path)


@pytest.mark.parametrize("version", [0, 2])
def test_a_file_for_another_api_is_refused_first(tmp_path: Path, version: int) -> None:
    path = tmp_path / "registry.yaml"
    path.write_text(f"api_version: {version}\nfrom_the_future: 1")
    with pytest.raises(PluginError, match=f"needs plugin API {version}, this host speaks 1"):
        read_registry(path)


def test_the_file_must_say_its_api(tmp_path: Path) -> None:
    path = tmp_path / "registry.yaml"
    path.write_text("plugins: {}")
    with pytest.raises(ConfigError, match="api_version: is missing"):
        read_registry(path)


def test_segues_own_components() -> None:
    records = first_party_registry().records
    assert {record.source for record in records} == {"segue"}
    assert {record.kind for record in records} == set(KINDS)
    assert ("codec", "spectral_codec.v1") in {(record.kind, record.name) for record in records}


def test_the_variable_comes_before_the_working_directory(
    write_registry: WriteRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_directory = write_registry("")
    monkeypatch.delenv("SEGUE_REGISTRY")
    monkeypatch.chdir(tmp_path)
    assert user_registry_path() == in_directory
    elsewhere = tmp_path / "elsewhere.yaml"
    elsewhere.write_text("api_version: 1")
    monkeypatch.setenv("SEGUE_REGISTRY", str(elsewhere))
    assert user_registry_path() == elsewhere
    monkeypatch.setenv("SEGUE_REGISTRY", "")
    assert user_registry_path() is None


def test_the_variable_must_name_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGUE_REGISTRY", "/no/such/file.yaml")
    with pytest.raises(ConfigError, match=r"SEGUE_REGISTRY: there is no file /no/such/file\.yaml"):
        user_registry_path()


def test_both_names_are_known_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SEGUE_REGISTRY")
    monkeypatch.chdir(tmp_path)
    assert user_registry_path() is None
    (tmp_path / "registry.yaml").write_text("api_version: 1")
    assert user_registry_path() == tmp_path / "registry.yaml"
    (tmp_path / "segue-registry.yaml").write_text("api_version: 1")
    assert user_registry_path() == tmp_path / "segue-registry.yaml"


def test_a_checkout_of_segue_is_no_users_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SEGUE_REGISTRY")
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "registry.py").touch()
    (tmp_path / "registry.yaml").write_text("api_version: 1")
    monkeypatch.chdir(tmp_path)
    assert user_registry_path() is None
