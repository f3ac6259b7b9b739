"""Forward to ``segue.inference.request``."""

from segue.core.moved import forward

__getattr__ = forward(__name__, "segue.inference.request")
