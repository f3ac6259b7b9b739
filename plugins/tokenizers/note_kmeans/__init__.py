"""Semantic tokens of a note transcriber: onsets and sounding keys, clustered by register."""
