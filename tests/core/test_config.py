"""Configs: layers, names, paths in errors, completeness."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from segue.core.config_files import assignment, leaves, load_config, merge
from segue.core.errors import CheckpointError, ConfigError, PluginError
from segue.core.plugins import PluginHost

DOMAINS = ("speech", "piano")


@pytest.fixture(scope="module")
def host() -> PluginHost:
    return PluginHost.discover(entry_points=False)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_config_of_a_domain_loads_with_all_defaults_filled_in(
    domain: str, host: PluginHost
) -> None:
    from segue.core.config_files import find_domain

    names = find_domain(domain, host).names
    assert domain in names and f"{domain}/baseline" in names
    for name in names:
        for ref in load_config(name, host).config.parts.values():
            assert ref.options, f"{ref.use} has no resolved options"


def test_domain_swap_is_one_word(host: PluginHost) -> None:
    speech, piano = (load_config(domain, host).config for domain in DOMAINS)
    assert (speech.name, piano.name) == DOMAINS
    speech, piano = (load_config(f"{domain}/baseline", host).config for domain in DOMAINS)
    assert speech.semantic_tokenizer and piano.semantic_tokenizer
    assert speech.semantic_tokenizer.use != piano.semantic_tokenizer.use


def test_a_file_extends_a_domain_and_merges_stages_by_name(
    tmp_path: Path, host: PluginHost
) -> None:
    path = write(
        tmp_path / "mine.yaml",
        "extends: speech/baseline\nname: mine\n"
        "stages:\n  - {name: acoustic, sampling: {top_k: 7}}\n",
    )
    loaded = load_config(path, host)
    base = load_config("speech/baseline", host).config
    assert [stage.name for stage in loaded.config.stages] == [s.name for s in base.stages]
    assert loaded.config.stage("acoustic").sampling.top_k == 7  # type: ignore[union-attr]
    assert loaded.config.stage("semantic") == base.stage("semantic")
    assert loaded.origins["stages.acoustic.sampling.top_k"] == str(path)
    assert loaded.origins["codec.use"].endswith("baseline.yaml")


def test_files_extend_in_a_chain_relative_to_each_other(tmp_path: Path, host: PluginHost) -> None:
    (tmp_path / "a").mkdir()
    write(tmp_path / "base.yaml", "extends: piano/baseline\nname: one\ndescription: kept\n")
    top = write(tmp_path / "a" / "top.yaml", "extends: ../base.yaml\nname: two\n")
    config = load_config(top, host).config
    assert (config.name, config.description) == ("two", "kept")


def test_a_missing_base_is_named_by_where_it_was_looked_for(
    tmp_path: Path, host: PluginHost
) -> None:
    top = write(tmp_path / "top.yaml", "extends: nowhere.yaml\n")
    with pytest.raises(ConfigError, match="is not a domain, config file") as caught:
        load_config(top, host)
    assert caught.value.place == str(tmp_path / "nowhere.yaml")


def test_a_training_directory_leads_to_its_pipeline(tmp_path: Path, host: PluginHost) -> None:
    (tmp_path / "pipeline").mkdir()
    with pytest.raises(ConfigError, match=r"holds no pipeline\.yaml") as caught:
        load_config(tmp_path, host)
    assert caught.value.fix == f"name {tmp_path / 'pipeline'}"


def test_a_circle_of_extends_is_refused(tmp_path: Path, host: PluginHost) -> None:
    write(tmp_path / "a.yaml", "extends: b.yaml\n")
    path = write(tmp_path / "b.yaml", "extends: a.yaml\n")
    with pytest.raises(ConfigError, match="extends itself"):
        load_config(path, host)


def test_set_wins_over_files_and_later_over_earlier(host: PluginHost) -> None:
    key = "stages.semantic.sampling.temperature"
    loaded = load_config("speech/baseline", host, [f"{key}=0.5", f"{key}=0.25"])
    assert loaded.config.stage("semantic").sampling.temperature == 0.25  # type: ignore[union-attr]
    assert loaded.origins[key] == f"--set {key}=0.25"


def test_a_new_plugin_drops_the_options_and_checkpoint_of_the_old_one() -> None:
    base = {"codec": {"use": "a.v1", "options": {"x": 1}, "checkpoint": "c", "training": {"s": 1}}}
    assert merge(base, assignment("codec.use=b.v1", base)) == {
        "codec": {"training": {"s": 1}, "use": "b.v1"}
    }
    assert merge(base, assignment("codec.use=a.v1", base))["codec"]["options"] == {"x": 1}


@pytest.mark.parametrize(
    ("override", "place", "problem"),
    [
        ("codec.options.widht=3", "codec.options.widht", "did you mean 'width'"),
        (
            "stages.semantic.lm.options.depht=3",
            "stages.semantic.lm.options.depht",
            "did you mean 'depth'",
        ),
        ("stages.semantic.smapling={}", "stages.semantic.smapling", "did you mean 'sampling'"),
        ("stages.semantic.sampling.temperature=-1", "stages.semantic.sampling.temperature", "-1"),
        ("stages.semantic.sampling.top_p=hot", "stages.semantic.sampling.top_p", "hot"),
        ("codec.options.num_levels=0", "codec.options.num_levels", "0"),
        ("stages.semantic.predicts=melody", "stages.semantic.predicts", "melody"),
        ("stages.acoustic.predicts=acoustic[4:4]", "stages.acoustic.predicts", "no level"),
        ("prompt.min_seconds=.nan", "prompt.min_seconds", "nan"),
        ("prompt.level=1.0e-9", "prompt.level", "out of range"),
        ("stages.semantic.sampling.top_k=true", "stages.semantic.sampling.top_k", "is true"),
        ("codec.training.workers=100000", "codec.training.workers", "out of range"),
        ("codec.training.batch_size=1000000000", "codec.training.batch_size", "out of range"),
        ("codec.training.steps=yes", "codec.training.steps", "should be a number"),
        (f"codec.training.steps={10**30}", "codec.training.steps", "more than 64 bits"),
    ],
)
def test_errors_name_the_full_path_and_the_value(
    override: str, place: str, problem: str, host: PluginHost
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("speech/baseline", host, [override])
    assert place in caught.value.place
    assert problem in str(caught.value)


def test_set_refuses_what_is_no_assignment_and_stages_that_do_not_exist(host: PluginHost) -> None:
    with pytest.raises(ConfigError, match=r"path\.to\.key=value"):
        load_config("speech/baseline", host, ["codec.use"])
    with pytest.raises(ConfigError, match=r"'corse'.*semantic, acoustic"):
        load_config("speech/baseline", host, ["stages.corse.crop_seconds=1"])


def test_an_unknown_plugin_is_refused_with_a_suggestion(host: PluginHost) -> None:
    with pytest.raises(PluginError, match=r"spectral_codec\.v1"):
        load_config("speech/baseline", host, ["codec.use=spectral_codec.v2"])


def test_an_unknown_source_lists_the_domains(host: PluginHost) -> None:
    with pytest.raises(ConfigError, match="piano, speech"):
        load_config("speach", host)
    with pytest.raises(ConfigError, match="speech/baseline"):
        load_config("speech/large", host)


@pytest.mark.parametrize("text", ["a: [1", "- just\n- a list\n", "\x00"])
def test_what_is_no_yaml_mapping_is_refused_with_its_place(
    text: str, tmp_path: Path, host: PluginHost
) -> None:
    path = write(tmp_path / "bad.yaml", text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, host)
    assert str(path) in str(caught.value)


def test_two_stages_of_one_name_are_refused(tmp_path: Path, host: PluginHost) -> None:
    base = load_config("speech/baseline", host).config.model_dump(mode="json")
    base["stages"].append(base["stages"][0])
    path = write(tmp_path / "twice.yaml", yaml.safe_dump(base))
    with pytest.raises(ConfigError, match="two stages are called 'semantic'"):
        load_config(path, host)


def test_the_resolved_config_is_a_config_that_resolves_to_itself(
    tmp_path: Path, host: PluginHost
) -> None:
    config = load_config("piano/baseline", host).config
    path = write(tmp_path / "resolved.yaml", yaml.safe_dump(config.model_dump(mode="json")))
    assert load_config(path, host).config == config


def test_leaves_name_items_of_named_lists() -> None:
    assert leaves({"a": {"b": 1}, "s": [{"name": "x", "c": 2}]}) == {
        "a.b": 1,
        "s.x.name": "x",
        "s.x.c": 2,
    }


@pytest.mark.parametrize(
    "value", ["2020-13-45", "!!int foo", "!!timestamp foo", "&a {x: *a}", "[1", "{a: 1, a: 2}"]
)
def test_malformed_values_end_in_one_sentence(value: str, tmp_path: Path, host: PluginHost) -> None:
    with pytest.raises(ConfigError, match="--set name"):
        load_config("speech/baseline", host, [f"name={value}"])
    path = write(tmp_path / "bad.yaml", f"extends: speech\nname: {value}\n")
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        load_config(path, host)


def test_explained_origins_are_those_of_values_still_in_place(host: PluginHost) -> None:
    loaded = load_config("speech/baseline", host, ["stages.semantic.lm.use=delay_transformer.v1"])
    assert "stages.semantic.lm.options.width" not in loaded.origins
    assert loaded.origins["stages.semantic.lm.use"].startswith("--set")


def test_a_checkpoint_named_on_the_command_line_is_relative_to_the_working_directory(
    host: PluginHost, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=str(tmp_path / "some" / "where")):
        load_config("speech/baseline", host, ["codec.checkpoint=some/where"])


def test_names_of_stages_are_text(tmp_path: Path, host: PluginHost) -> None:
    path = write(tmp_path / "odd.yaml", "extends: speech\nstages:\n  - {name: [1]}\n")
    with pytest.raises(ConfigError, match="stages"):
        load_config(path, host)
