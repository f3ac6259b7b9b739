"""Pipelines on the Hub, against a local stand-in of its HTTP interface."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.hub_stand_in import Hub, Repository

from segue import Pipeline
from segue.core.config import PipelineConfig
from segue.core.errors import CheckpointError, PluginError
from segue.core.plugins import default_host
from segue.inference.hub import _facts, is_hub_name

hub_library = pytest.importorskip("huggingface_hub")
constants = pytest.importorskip("huggingface_hub.constants")


@pytest.fixture(scope="module")
def pipeline(tiny_pipelines: dict[str, Path]) -> Pipeline:
    return Pipeline.from_pretrained(tiny_pipelines["speech"])


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield hub
    hub.shutdown()
    thread.join()
    hub.server_close()


@pytest.fixture
def hub(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """An empty Hub, and an empty cache. Xet, which replaces LFS, has a protocol of its own."""
    server.repositories.clear()
    server.requests.clear()
    template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return server


def test_what_is_pushed_is_loaded_from_any_of_its_revisions(hub: Hub, pipeline: Pipeline) -> None:
    address = pipeline.push_to_hub("me/voice", token=Hub.token, licence="apache-2.0")
    commit = hub.repositories["me/voice"].branches["main"]
    assert address == f"{hub.address}/me/voice/commit/{commit}"
    files = hub.repositories["me/voice"].commits[commit]
    assert {"README.md", "pipeline.yaml", "stages/acoustic/model.safetensors"} <= files.keys()
    loaded = Pipeline.from_pretrained("me/voice", device="auto")
    wanted = pipeline.generate(0.4, seed=3)
    assert torch.equal(loaded.generate(0.4, seed=3).wave, wanted.wave)

    with torch.no_grad():
        for parameter in loaded.stage_lm("semantic").parameters():
            parameter.normal_()
    other = loaded.generate(0.4, seed=3)
    loaded.push_to_hub("me/voice", revision="wild", token=Hub.token)
    for revision, audio in ((None, wanted), ("main", wanted), (commit, wanted), ("wild", other)):
        again = Pipeline.from_pretrained("me/voice", revision=revision)
        assert torch.equal(again.generate(0.4, seed=3).wave, audio.wave), revision

    hub.requests.clear()
    monkey = pytest.MonkeyPatch()
    with monkey.context() as offline:
        offline.setattr(constants, "HF_HUB_OFFLINE", True)
        cached = Pipeline.from_pretrained("me/voice")
    assert torch.equal(cached.generate(0.4, seed=3).wave, wanted.wave)
    assert hub.requests == []


def test_a_push_replaces_parts_and_keeps_the_card(hub: Hub, pipeline: Pipeline) -> None:
    repository = hub.repositories["me/voice"] = Repository()
    old = {"README.md": b"mine", "stages/old/model.safetensors": b"", "notes.txt": b"kept"}
    repository.commit("main", old)
    pipeline.push_to_hub("me/voice", token=Hub.token)
    files = repository.files("main")
    assert files is not None
    assert files["README.md"] == b"mine" and files["notes.txt"] == b"kept"
    assert "stages/old/model.safetensors" not in files and "pipeline.yaml" in files


def test_a_model_card_says_what_the_pipeline_is_and_how_it_is_used(
    hub: Hub, pipeline: Pipeline
) -> None:
    pipeline.push_to_hub("me/voice", token=Hub.token, licence="mit", lm_dtype=torch.float16)
    files = hub.repositories["me/voice"].files("main")
    assert files is not None
    card = files["README.md"].decode()
    assert card.startswith("---\nlibrary_name: segue\n") and "license: mit" in card
    assert 'Pipeline.from_pretrained("me/voice")' in card
    assert pipeline.config.description in card
    assert "| codec | `spectral_codec.v1` | 3 x 32 codes at 50 Hz |" in card
    assert "| stages.acoustic | `delay_transformer.v1` | `acoustic[0:3]` |" in card
    assert hub_library.ModelCard(card).data.library_name == "segue"


def test_figures_of_a_model_card_are_short() -> None:
    trained = {"frames": 91640.0, "inertia": 0.8203266773704383, "steps": 3, "nested": {}}
    assert _facts(trained) == "frames 91640, inertia 0.8203, steps 3"


def test_only_files_of_a_pipeline_are_fetched_and_none_outside_it(
    hub: Hub, pipeline: Pipeline, tmp_path: Path
) -> None:
    pipeline.push_to_hub("me/voice", token=Hub.token)
    repository = hub.repositories["me/voice"]
    files = repository.files("main")
    assert files is not None
    repository.commit("main", files | {"setup.py": b"", "weights.bin": b""})
    Pipeline.from_pretrained("me/voice")
    fetched = {path.name for path in (tmp_path / "cache").rglob("*")}
    assert "pipeline.yaml" in fetched and not {"setup.py", "weights.bin"} & fetched
    for number, wrong in enumerate((b"/etc/codec", b"../../codec", b"stages/../../../codec")):
        text = files["pipeline.yaml"].replace(b"checkpoint: codec", b"checkpoint: " + wrong)
        assert text != files["pipeline.yaml"]
        repository.commit("main", files | {"pipeline.yaml": text, f"{number}.txt": b""})
        with pytest.raises(CheckpointError, match="outside of the repository"):
            Pipeline.from_pretrained("me/voice")


def refused(source: str, problem: str, **options: str) -> None:
    with pytest.raises(CheckpointError, match=problem) as caught:
        Pipeline.from_pretrained(source, **options)  # type: ignore[arg-type]
    assert caught.value.place == source


def test_repositories_that_cannot_be_loaded(hub: Hub, pipeline: Pipeline) -> None:
    refused("me/none", "is not a directory, a domain or a repository; check the name")
    hub.repositories["me/empty"] = Repository()
    hub.repositories["me/empty"].commit("main", {"README.md": b""})
    refused("me/empty", "holds no pipeline.yaml")
    refused("me/empty", "has no revision 'v9'", revision="v9")
    pipeline.push_to_hub("me/hidden", token=Hub.token, private=True)
    refused("me/hidden", "for a private one log in")
    assert Pipeline.from_pretrained("me/hidden", token=Hub.token).config.name == "speech"


def test_without_a_token_nothing_is_pushed(hub: Hub, pipeline: Pipeline) -> None:
    with pytest.raises(CheckpointError, match="log in"):
        pipeline.push_to_hub("me/voice")
    with pytest.raises(CheckpointError, match="write org/name"):
        pipeline.push_to_hub("voice", token=Hub.token)
    assert hub.repositories == {}


def test_offline_errors_say_what_to_do(
    hub: Hub, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = "is not a directory here; the Hub cannot be reached, and the cache has no copy"
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    refused("me/voice", wanted)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused("me/voice", wanted)
    alone = "me/voice: the Hub cannot be reached; connect"  # no word of directories and copies
    with pytest.raises(CheckpointError, match=alone):
        pipeline.push_to_hub("me/voice", token=Hub.token)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(PluginError, match=r"pip install 'segue\[hub\]'"):
        Pipeline.from_pretrained("me/voice")


def test_an_upload_that_breaks_off_is_one_sentence(
    hub: Hub, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def upload(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("Error while uploading") from ConnectionError("refused")

    monkeypatch.setattr(hub_library.HfApi, "upload_folder", upload)
    with pytest.raises(CheckpointError, match="the Hub cannot be reached; connect"):
        pipeline.push_to_hub("me/voice", token=Hub.token)


def test_directories_and_domains_are_not_looked_up(
    hub: Hub, tiny_pipelines: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(tiny_pipelines["speech"])
    assert isinstance(Pipeline.from_pretrained("runs/mine").config, PipelineConfig)
    host = default_host()
    names = [
        "speech",
        "speech/three_stage",
        "speech/typo",
        "runs/mine",
        "./a/b",
        "a/b/c",
        "a/b.yaml",
    ]
    assert not any(is_hub_name(name, host) for name in names)
    assert is_hub_name("some-org/some_name.v1", host)
    refused_revision = pytest.raises(CheckpointError, match="leave it out, or name a repository")
    with refused_revision:
        Pipeline.from_pretrained("runs/mine", revision="main")
    assert hub.requests == []
