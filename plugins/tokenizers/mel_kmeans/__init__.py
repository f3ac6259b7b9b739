"""A semantic tokenizer that clusters mel cepstra: no network, fitted in minutes."""
