"""Forward the former place of the conformance checks to ``segue.testing``, for one version."""

import warnings
from importlib import import_module  # by name, since core imports none of its siblings

warnings.warn("import segue.testing in place of segue.core.conformance", DeprecationWarning, 2)


def __getattr__(name: str) -> object:
    return getattr(import_module("segue.testing"), name)
