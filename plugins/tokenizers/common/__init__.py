"""Parts that several tokenizers share."""
