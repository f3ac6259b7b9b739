"""Forward to ``segue.testing``."""

from segue.core.moved import forward

__getattr__ = forward(__name__, "segue.testing")
