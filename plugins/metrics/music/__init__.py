"""What the metrics of music share: keys, onsets, chroma and statistics of notes."""
