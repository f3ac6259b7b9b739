"""Opinion of speech, predicted by a distilled self-supervised model."""
