"""A semantic tokenizer that clusters one layer of a pretrained self-supervised model."""
