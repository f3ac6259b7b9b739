"""Convolutions over log-mel spectrograms."""
