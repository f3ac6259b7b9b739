"""AudioLM's semantic tokenizer: a self-supervised masked conformer, one layer of it clustered."""
