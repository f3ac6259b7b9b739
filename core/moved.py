"""Forward former places of the public API, for one version."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module  # by name, since core imports none of its siblings


def forward(old: str, new: str) -> Callable[[str], object]:
    """Warn of a module's former place; return its ``__getattr__``."""
    warnings.warn(f"import {new} in place of {old}", DeprecationWarning, stacklevel=3)
    return lambda name: getattr(import_module(new), name)
