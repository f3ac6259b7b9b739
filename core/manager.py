"""Forward to ``segue.core.plugins``."""

from segue.core.moved import forward

__getattr__ = forward(__name__, "segue.core.plugins")
