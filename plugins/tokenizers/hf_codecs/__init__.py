"""What the codecs of Hugging Face transformers share: their source, their options, their rows."""
