"""Blocks that the stage models share."""
