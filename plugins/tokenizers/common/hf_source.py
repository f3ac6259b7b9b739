"""Where a codec of Hugging Face lies: a directory that ``save_pretrained`` wrote, or the hub.

Imports no torch, and of the hub's files it fetches ``config.json`` only until weights are loaded.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from segue.core.errors import ConfigError, PluginError
from segue.plugins.tokenizers.common.sources import file_hash

CONFIG, WEIGHTS = "config.json", "model.safetensors"
#: Said of a config by transformers, but not what the codec is.
_INCIDENTAL = ("transformers_version", "architectures", "dtype", "torch_dtype", "_name_or_path")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def read_config(pretrained: str, revision: str | None) -> dict[str, Any]:
    """What ``config.json`` says of the architecture.

    Raises:
        ConfigError: if it cannot be found or read.
    """
    return _read(_config_path(pretrained, revision))


def read_beside(pretrained: str, revision: str | None, file: str) -> dict[str, Any]:
    """What another JSON file beside ``config.json`` says.

    Raises:
        ConfigError: if it cannot be found or read.
    """
    config = _config_path(pretrained, revision)
    if Path(pretrained).expanduser().is_dir():
        return _read(config.with_name(file))
    return _read(_fetch(pretrained, file, config.parent.name))


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return {key: value for key, value in values.items() if key not in _INCIDENTAL}
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(
            "pretrained", f"{path} cannot be read ({error})", "restore the file"
        ) from error


def weights_hash(pretrained: str, revision: str | None) -> str:
    """The SHA-256 of the weights; of the hub's weights without fetching them.

    Raises:
        ConfigError: if there are none, or the hub does not answer.
    """
    config = _config_path(pretrained, revision)
    if Path(pretrained).expanduser().is_dir():
        return file_hash(_weights_beside(config, pretrained))
    return _hub_hash(pretrained, config.parent.name)


def weights_directory(pretrained: str, revision: str | None) -> Path:
    """A directory that holds config and weights; those of the hub are fetched.

    Raises:
        ConfigError: if there are none, or the hub does not answer.
    """
    config = _config_path(pretrained, revision)
    if not Path(pretrained).expanduser().is_dir():
        _fetch(pretrained, WEIGHTS, config.parent.name)
    return _weights_beside(config, pretrained).parent


def _config_path(pretrained: str, revision: str | None) -> Path:
    directory = Path(pretrained).expanduser()
    if directory.is_dir():
        if revision is not None:
            raise ConfigError(
                "revision", f"is {revision!r}, but {pretrained} is a directory", "leave it out"
            )
        if not (directory / CONFIG).is_file():
            raise ConfigError(
                "pretrained",
                f"{pretrained} holds no {CONFIG}",
                "name a directory that save_pretrained wrote",
            )
        return directory / CONFIG
    if pretrained.startswith((".", "/", "~")):
        raise ConfigError("pretrained", f"there is no directory {directory}", "correct the path")
    return _hub_config(pretrained, revision)


def _weights_beside(config: Path, pretrained: str) -> Path:
    path = config.with_name(WEIGHTS)
    if not path.is_file():
        raise ConfigError(
            "pretrained",
            f"{pretrained} holds no {WEIGHTS}",
            "save the model as one safetensors file: save_pretrained does",
        )
    return path


@lru_cache(maxsize=64)
def _hub_config(name: str, revision: str | None) -> Path:
    """Asked for once per process: what a branch points to must not change in between."""
    return _fetch(name, CONFIG, revision)


@lru_cache(maxsize=64)
def _hub_hash(name: str, commit: str) -> str:
    hub = _hub()
    cached = hub.try_to_load_from_cache(name, WEIGHTS, revision=commit)
    if not isinstance(cached, str):
        url = hub.hf_hub_url(name, WEIGHTS, revision=commit)
        try:
            # Large files are stored under their SHA-256.
            etag = hub.get_hf_file_metadata(url).etag or ""
        except Exception as error:
            raise _unreachable(name, WEIGHTS, error) from error
        if _SHA256.fullmatch(etag):
            return str(etag)
        cached = str(_fetch(name, WEIGHTS, commit))
    return file_hash(Path(cached))


def _fetch(name: str, file: str, revision: str | None) -> Path:
    """The file in the hub's cache; fetched if it is not there."""
    try:
        return Path(_hub().hf_hub_download(name, file, revision=revision))
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


def _unreachable(name: str, file: str, error: Exception) -> ConfigError | PluginError:
    if isinstance(error, PluginError):
        return error
    told, _, _ = " ".join(str(error).split()).partition(". ")
    return ConfigError(
        "pretrained",
        f"{file} of {name!r} cannot be had ({type(error).__name__}: {told[:200]})",
        "name a directory that save_pretrained wrote, or a model of huggingface.co that is in the "
        "cache or can be reached",
    )
