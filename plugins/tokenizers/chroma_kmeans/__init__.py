"""Semantic tokens of music from clustered harmony, onsets and loudness."""
