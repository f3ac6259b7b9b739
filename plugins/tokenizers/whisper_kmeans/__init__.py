"""Semantic tokens of a speech recogniser's encoder: the lower layers of Whisper, clustered."""
