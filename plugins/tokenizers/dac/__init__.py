"""The Descript Audio Codec of Hugging Face transformers. Imports no torch."""
