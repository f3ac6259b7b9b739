"""Perceptual evaluation of speech quality."""
