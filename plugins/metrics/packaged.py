"""Find weights inside installed packages without importing these, which may need far more."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from segue.core.errors import PluginError


def packaged_file(package: str, inside: str, component: str, fix: str) -> Path:
    """Return the path of a file of an installed package.

    Args:
        package: its import name.
        inside: the file, relative to the package's folder.
        component: who asks, for the message.
        fix: how to install it.

    Raises:
        PluginError: if it is not installed, or lacks this file.
    """
    found = find_spec(package)
    for folder in (found.submodule_search_locations or ()) if found else ():
        if (Path(folder) / inside).is_file():
            return Path(folder) / inside
    raise PluginError(component, f"the weights of {package} are not installed", fix)
