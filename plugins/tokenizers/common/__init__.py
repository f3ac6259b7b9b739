"""Framing and k-means that the tokenizers share."""
