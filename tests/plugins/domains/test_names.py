"""Each name of a domain means one pipeline: the one that runs is shown and trained anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from segue.core.checkpoint_files import read_manifest
from segue.core.config import replace_parts
from segue.core.config_files import domain_names, find_config, find_domain, load_config
from segue.core.errors import ConfigError
from segue.core.plugins import PluginHost

HOST = PluginHost.discover(entry_points=False)
DOMAINS = domain_names(HOST)
SHIPPED = [name for domain in DOMAINS for name in find_domain(domain, HOST).pretrained_names]


@pytest.mark.parametrize("name", SHIPPED)
def test_what_runs_is_shown_and_trained_anew(name: str) -> None:
    path = find_config(name, HOST)
    shown = load_config(name, HOST).config
    assert path.parent.name == "pretrained" and shown == load_config(path, HOST).config
    for ref in shown.parts.values():
        trained = read_manifest(Path(str(ref.checkpoint))).options
        assert {key: ref.options[key] for key in trained} == trained
    bare = {part: ref.model_copy(update={"checkpoint": None}) for part, ref in shown.parts.items()}
    expected = replace_parts(shown, bare).model_copy(update={"description": ""})
    assert shown.description and load_config(name, HOST, anew=True).config == expected


@pytest.mark.parametrize("domain", DOMAINS)
def test_no_config_hides_behind_a_shipped_pipeline(domain: str) -> None:
    found = find_domain(domain, HOST)
    assert domain in found.pretrained_names and f"{domain}/baseline" in found.names
    assert not (found.directory / "config.yaml").exists()
    for name in found.pretrained_names:
        _, slash, variant = name.partition("/")
        assert not slash or not (found.directory / f"{variant}.yaml").exists()


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_file_that_extends_a_domain_keeps_its_weights_unless_it_is_trained(
    domain: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"extends: {domain}\nname: mine\n")
    kept = load_config(path, HOST).config
    assert (kept.name, kept.parts) == ("mine", load_config(domain, HOST).config.parts)
    anew = load_config(path, HOST, anew=True).config
    assert not any(ref.checkpoint for ref in anew.parts.values())
    path.write_text(f"extends: {domain}\ncodec: {{options: {{of_another_codec: 1}}}}\n")
    with pytest.raises(ConfigError, match=f"`extends: {domain}` is .* is {domain}/baseline"):
        load_config(path, HOST)


def test_fine_tuning_starts_from_weights_that_a_path_names() -> None:
    path = find_config(DOMAINS[0], HOST)
    config = load_config(path, HOST, anew=True).config
    assert config.parts == load_config(path, HOST).config.parts
    assert config.description == ""  # it is of the weights before fine-tuning


def test_what_the_user_says_of_a_pipeline_stays(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"extends: {DOMAINS[0]}/baseline\ndescription: my birds\n")
    assert load_config(path, HOST, anew=True).config.description == "my birds"


def test_clusters_are_fitted_anew_on_the_encoder_that_ships() -> None:
    part = load_config("speech", HOST, anew=True).config.semantic_tokenizer
    assert part is not None and part.checkpoint is None
    start = Path(str(part.training.start_from))
    assert read_manifest(start).use == part.use == "whisper_kmeans.v1"
    # Another plugin, or other weights, does not start from these.
    for other in ("use=mel_kmeans.v1", f"checkpoint={start}"):
        changed = load_config("speech", HOST, [f"semantic_tokenizer.{other}"], anew=True).config
        assert changed.parts["semantic_tokenizer"].training.start_from is None
