"""Frechet audio distance."""
