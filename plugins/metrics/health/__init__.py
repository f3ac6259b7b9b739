"""Silence, clipping, drift and loops."""
