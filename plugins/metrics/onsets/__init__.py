"""Density and rhythm, from onsets in spectra."""
