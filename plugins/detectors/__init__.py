"""Detectors of generated audio."""
