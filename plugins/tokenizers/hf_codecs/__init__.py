"""Pretrained codecs of Hugging Face transformers: EnCodec, DAC and Mimi."""
