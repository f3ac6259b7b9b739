"""Lyra V2, a pretrained SoundStream for speech at 1.6 to 9.2 kbit/s."""
