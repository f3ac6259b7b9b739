"""AudioLM's semantic tokens: a self-supervised masked conformer, one layer of it clustered."""
