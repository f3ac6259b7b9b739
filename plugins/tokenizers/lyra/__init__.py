"""Lyra V2: a pretrained SoundStream for speech, through LiteRT. Imports no torch."""
