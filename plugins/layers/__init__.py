"""Network layers shared by stage models and tokenizers."""
