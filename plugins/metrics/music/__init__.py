"""Share keys, onsets, chroma and note statistics among the metrics of music."""
