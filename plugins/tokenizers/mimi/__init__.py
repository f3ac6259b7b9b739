"""Mimi of Hugging Face transformers. Imports no torch."""
