"""Predicted opinion of speech."""
