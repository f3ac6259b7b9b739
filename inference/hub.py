"""Fetch pipelines from the Hugging Face Hub, and publish them there.

Only files that a pipeline consists of are fetched: YAML, JSON and safetensors. None is run as code.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from segue.core.assembly import Assembly
from segue.core.config_files import domain_names
from segue.core.domain import PIPELINE_FILE
from segue.core.errors import CheckpointError, PluginError, SegueError
from segue.core.plugins import PluginHost
from segue.core.yaml_files import YAML_ERRORS, parse_yaml

FILES = ("*.yaml", "*.json", "*.safetensors")
CARD = "README.md"

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_name(source: str | Path, host: PluginHost) -> bool:
    """Return whether a source names a repository, ``org/name``: no path, and none of a domain."""
    if isinstance(source, Path) or Path(source).exists() or not _NAME.fullmatch(source):
        return False
    is_file = source.endswith((".yaml", ".yml"))
    return not is_file and source.partition("/")[0] not in domain_names(host)


def fetch(name: str, revision: str | None, token: str | None) -> Path:
    """Return a repository's pipeline, from the cache or fetched, or raise ``CheckpointError``."""
    with _clear_errors(name, revision):
        found = _hub(name).snapshot_download(
            name, revision=revision, token=token, allow_patterns=list(FILES), library_name="segue"
        )
    directory = Path(found)
    if not (directory / PIPELINE_FILE).is_file():
        raise CheckpointError(name, f"holds no {PIPELINE_FILE}", "name a repository of a pipeline")
    for path in directory.glob("*.yaml"):
        _check_paths(path, f"{name}/{path.name}")
    return directory


def publish(
    save: Callable[[Path], object],
    card: str,
    name: str,
    *,
    revision: str | None,
    private: bool | None,
    token: str | None,
    message: str,
) -> str:
    """Upload a pipeline in one commit and return its address, or raise ``CheckpointError``.

    Args:
        card: text of the model card, unless the repository has one already.
        name: ``org/name``; made if it does not exist.
    """
    if not _NAME.fullmatch(name):
        raise CheckpointError(name, "is not the name of a repository", "write org/name")
    with tempfile.TemporaryDirectory() as folder, _clear_errors(name, revision, push=True):
        api = _hub(name).HfApi(token=token, library_name="segue")
        api.create_repo(name, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        directory = Path(folder) / "pipeline"
        save(directory)
        if not api.file_exists(name, CARD, revision=revision):
            (directory / CARD).write_text(card, encoding="utf-8")
        commit = api.upload_folder(
            repo_id=name,
            folder_path=directory,
            revision=revision,
            commit_message=message,
            delete_patterns=list(FILES),  # parts that this pipeline no longer has
        )
    return str(commit.commit_url)


def model_card(assembly: Assembly, licence: str | None) -> str:
    """Return a model card in Markdown: how to use the pipeline, its parts, and their training."""
    config, streams = assembly.config, assembly.streams
    tags = {
        "library_name": "segue",
        "pipeline_tag": "audio-to-audio",
        "tags": ["audio", "segue", "audio-language-model"],
        **({} if licence is None else {"license": licence}),
    }
    lines = ["---", yaml.safe_dump(tags, sort_keys=False).strip(), "---", "", f"# {config.name}"]
    lines += ["", config.description] if config.description else []
    lines += [
        "",
        "A pipeline of [Segue](https://pypi.org/project/segue/): it continues, generates and fills"
        " audio with token language models.",
        "",
        "```python",
        "from segue import Pipeline",
        "",
        'pipeline = Pipeline.from_pretrained("REPOSITORY")',
        'audio = pipeline.continue_("prompt.wav", seconds=5)',
        'audio.save("out.wav")',
        "```",
        "",
        "| part | plugin | predicts | trained |",
        "|---|---|---|---|",
    ]
    for name, part in assembly.parts.items():
        spec = streams.get("acoustic" if name == "codec" else "semantic")
        shape = "" if spec is None else f"{spec.num_levels} x {spec.codebook_size} codes"
        rate = "" if spec is None else f" at {float(spec.frame_rate):g} Hz"
        predicts = f"{shape}{rate}" if part.stage is None else f"`{part.stage.target}`"
        trained = {} if part.manifest is None else part.manifest.trained
        lines.append(f"| {name} | `{part.use}` | {predicts} | {_facts(trained)} |")
    lines += ["", "What it makes is synthetic audio: say so where others hear it.", ""]
    return "\n".join(lines)


def _facts(trained: Mapping[str, Any]) -> str:
    plain = {key: value for key, value in trained.items() if isinstance(value, (str, int, float))}
    for key, value in plain.items():
        if isinstance(value, float):
            plain[key] = int(value) if value.is_integer() else round(value, 4)
    return ", ".join(f"{key} {value}" for key, value in plain.items()).replace("|", "/")


def _hub(name: str) -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        fix = "name one of these, or pip install 'segue[hub]' to reach the Hugging Face Hub"
        raise PluginError(name, "is not a directory or a domain here", fix) from error
    return huggingface_hub


_HTTP = {"httpx", "httpx2", "requests"}  # libraries that the Hub's own is built on


@contextmanager
def _clear_errors(name: str, revision: str | None, push: bool = False) -> Iterator[None]:
    """Turn the Hub's errors into one sentence with a fix."""
    errors = _hub(name).errors
    try:
        yield
    except SegueError:
        raise
    except errors.GatedRepoError as error:
        fix = "accept its terms on its page, then log in: hf auth login"
        raise CheckpointError(name, "is gated", fix) from error
    except errors.RepositoryNotFoundError as error:
        fix = "check the name; for a private one log in: hf auth login"
        raise CheckpointError(name, "is not a directory, a domain or a repository", fix) from error
    except errors.RevisionNotFoundError as error:
        fix = "name a branch, a tag or a commit"
        raise CheckpointError(name, f"has no revision {revision!r}", fix) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        fix = "log in with a token that may do this: hf auth login"
        fix = fix if status in (401, 403) else "try again later, or name a directory"
        raise CheckpointError(name, f"the Hub refused with status {status}", fix) from error
    except Exception as error:
        known = (errors.LocalEntryNotFoundError, ConnectionError, TimeoutError)
        causes = (error, error.__cause__)  # an upload wraps what failed
        libraries = {type(cause).__module__.partition(".")[0] for cause in causes}
        if not any(isinstance(cause, known) for cause in causes) and not libraries & _HTTP:
            raise
        fix = "connect to the internet (with HF_HUB_OFFLINE=0)"
        if push:
            raise CheckpointError(name, "the Hub cannot be reached", fix) from error
        problem = "is not a directory here; the Hub cannot be reached, and the cache has no copy"
        raise CheckpointError(name, problem, f"name a directory, or {fix}") from error


def _check_paths(path: Path, place: str) -> None:
    """Refuse a config that reads files outside of its own directory."""
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"))
    except YAML_ERRORS as error:
        raise CheckpointError(place, "is not YAML", "report it to its owner") from error
    for key, value in _texts(tree):
        if key not in ("checkpoint", "extends", "start_from"):
            continue
        parts = PurePosixPath(value.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or ":" in value:
            problem = f"names {value}, which lies outside of the repository"
            raise CheckpointError(place, problem, "do not use it, and report it to its owner")


def _texts(tree: object, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text in a tree under the key it has."""
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from _texts(value, str(name))
    elif isinstance(tree, list):
        for item in tree:
            yield from _texts(item, key)
    elif isinstance(tree, str):
        yield key, tree
