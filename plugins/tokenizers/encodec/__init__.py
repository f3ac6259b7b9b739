"""EnCodec of Hugging Face transformers. Imports no torch."""
