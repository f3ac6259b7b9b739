"""Semantic tokens from clustered mel cepstra: no network, fitted in minutes."""
