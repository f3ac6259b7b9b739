"""Short-time objective intelligibility."""
