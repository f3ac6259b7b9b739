"""Pitch classes and keys, from spectra."""
