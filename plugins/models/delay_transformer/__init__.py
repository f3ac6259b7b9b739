"""MusicGen's delay pattern: one step per frame. Imports no torch."""
