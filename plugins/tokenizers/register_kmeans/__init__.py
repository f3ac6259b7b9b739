"""Semantic tokens of a piano's registers, found in spectra alone."""
