"""Statistics of transcribed notes."""
