"""Options of the register k-means tokenizer. Imports no torch."""

from __future__ import annotations

from segue.plugins.tokenizers.common.options import RegisterOptions


class RegisterKMeansOptions(RegisterOptions):
    """Configure ``register_kmeans``."""
