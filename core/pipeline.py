"""Forward to ``segue.inference.pipeline``."""

from segue.core.moved import forward

__getattr__ = forward(__name__, "segue.inference.pipeline")
