"""An acoustic codec on short-time Fourier features, small enough to train on a CPU."""
