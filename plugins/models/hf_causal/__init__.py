"""A stage model around any causal language model of Hugging Face. Imports no torch."""
