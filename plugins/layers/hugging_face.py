"""Read pretrained models of Hugging Face: from a directory that save_pretrained wrote, or the hub.

Importing this module imports neither torch nor transformers. Until weights are loaded only JSON
files are fetched from the hub, so that a configuration can be checked without a large download.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from segue.core.errors import ConfigError, PluginError
from segue.core.files import read_text

CONFIG, WEIGHTS = "config.json", "model.safetensors"
#: Keys that transformers writes into a config and that do not describe the architecture.
INCIDENTAL = ("transformers_version", "architectures", "dtype", "torch_dtype", "_name_or_path")
REACHABLE = (
    "name a directory that save_pretrained wrote, or a model of huggingface.co that is in the cache"
    " or can be reached"
)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FIXES = {
    CONFIG: "name a directory that save_pretrained wrote",
    WEIGHTS: "save the model as one safetensors file with save_pretrained",
}


@dataclass(frozen=True)
class Source:
    """Name the place of a pretrained model; its methods raise ConfigError where reading fails."""

    pretrained: str  # a directory, or the name of a model on huggingface.co
    revision: str | None = None  # branch, tag or commit on huggingface.co; None is its main branch

    def __post_init__(self) -> None:
        if self.directory is not None and self.revision is not None:
            raise ConfigError(
                "revision",
                f"is {self.revision!r}, but {self.pretrained} is a directory",
                "remove revision",
            )
        if self.directory is None and self.pretrained.startswith((".", "/", "~")):
            raise ConfigError(
                "pretrained", f"there is no directory {self.pretrained}", "correct the path"
            )

    @property
    def directory(self) -> Path | None:
        """Return the local directory, or None for a model of the hub."""
        directory = Path(self.pretrained).expanduser()
        return directory if directory.is_dir() else None

    def read(self, file: str = CONFIG) -> dict[str, Any]:
        """Return the content of a JSON file, without incidental keys."""
        path = self._path(file)
        try:
            values = json.loads(read_text(path))
            return {key: value for key, value in values.items() if key not in INCIDENTAL}
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            raise ConfigError(
                "pretrained", f"{path} cannot be read ({error})", "restore the file"
            ) from error

    def weights_hash(self) -> str:
        """Return the SHA-256 of the weights; those of the hub need not be fetched."""
        if self.directory is None:
            return _hub_hash(self.pretrained, self._commit())
        return file_hash(self._path(WEIGHTS))

    def weights_directory(self) -> Path:
        """Return a directory that holds config and weights, fetched from the hub if needed."""
        self._path(CONFIG)
        return self._path(WEIGHTS).parent

    def _path(self, file: str) -> Path:
        if self.directory is None:
            return _fetch(self.pretrained, file, self._commit())
        path = self.directory / file
        if not path.is_file():
            fix = _FIXES.get(file, f"save {file} there too, with save_pretrained")
            raise ConfigError("pretrained", f"{self.pretrained} holds no {file}", fix)
        return path

    def _commit(self) -> str:
        # The cache of the hub keeps the files of a commit in a folder of that name.
        return _hub_config(self.pretrained, self.revision).parent.name


def load_model(
    model_class: Any,
    where: str | Path,
    name: str,
    place: str = "pretrained",
    headless: bool = False,
    **arguments: Any,
) -> Any:
    """Load a model of transformers in float32 from safetensors, or raise ``ConfigError``.

    Args:
        where: a directory, or a name that transformers can look up.
        name: what to call the model in errors.
        headless: accept missing weights of the head, outside of the base model.
    """
    import torch

    with loading(name, place):
        model, report = model_class.from_pretrained(
            where, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **arguments
        )
    base = f"{model.base_model_prefix}." if headless else ""
    missing = sorted(key for key in report["missing_keys"] if key.startswith(base))
    if missing:
        raise ConfigError(
            place,
            f"{name!r} holds no weights for {missing[0]} and {len(missing) - 1} others",
            "name a complete model: these parts would start from random weights",
        )
    return model


@contextmanager
def loading(name: str, place: str) -> Iterator[None]:
    """Turn errors of transformers in the block, which are of many kinds, into one of the place."""
    try:
        yield
    except Exception as error:
        raise ConfigError(
            place,
            f"{name!r} cannot be loaded ({first_sentence(error)})",
            f"{REACHABLE}; its weights must be safetensors",
        ) from error


def first_sentence(error: Exception) -> str:
    """Return type and first sentence of an error, for a message of one line."""
    text, _, _ = " ".join(str(error).split()).partition(". ")
    return f"{type(error).__name__}: {text[:200]}"


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file; a file that did not change is read once per process."""
    status = path.stat()
    return _file_hash(path.resolve(), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _file_hash(path: Path, size: int, changed: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


@lru_cache(maxsize=64)
def _hub_config(name: str, revision: str | None) -> Path:
    # Cached: the commit that a branch points to must not change within a process.
    return _fetch(name, CONFIG, revision)


@lru_cache(maxsize=64)
def _hub_hash(name: str, commit: str) -> str:
    hub = _hub()
    cached = hub.try_to_load_from_cache(name, WEIGHTS, revision=commit)
    if not isinstance(cached, str):
        url = hub.hf_hub_url(name, WEIGHTS, revision=commit)
        try:
            # The hub stores large files under their SHA-256.
            etag = hub.get_hf_file_metadata(url).etag or ""
        except Exception as error:
            raise _unreachable(name, WEIGHTS, error) from error
        if _SHA256.fullmatch(etag):
            return str(etag)
        cached = str(_fetch(name, WEIGHTS, commit))
    return file_hash(Path(cached))


def _fetch(name: str, file: str, revision: str | None) -> Path:
    hub = _hub()
    try:
        return Path(hub.hf_hub_download(name, file, revision=revision))
    except Exception as error:
        raise _unreachable(name, file, error) from error


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise PluginError(
            "pretrained", "names a model of huggingface.co", "pip install 'segue[hf]'"
        ) from error
    return huggingface_hub


def _unreachable(name: str, file: str, error: Exception) -> ConfigError:
    problem = f"{file} of {name!r} cannot be fetched ({first_sentence(error)})"
    return ConfigError("pretrained", problem, REACHABLE)
