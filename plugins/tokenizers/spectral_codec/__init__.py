"""An acoustic codec on short-time Fourier features, small enough to be trained on a CPU."""
