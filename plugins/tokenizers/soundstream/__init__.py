"""SoundStream: a causal convolutional codec that works on the wave and streams both ways."""
