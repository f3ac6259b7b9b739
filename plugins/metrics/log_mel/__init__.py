"""Distance of log-mel spectrograms."""
