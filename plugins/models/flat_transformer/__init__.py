"""AudioLM's stage model: one step per token. Imports no torch."""
