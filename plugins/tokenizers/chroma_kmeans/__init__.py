"""A semantic tokenizer that clusters harmony, onsets and loudness: for music."""
