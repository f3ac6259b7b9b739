"""Lyra V2, a small SoundStream for speech."""
