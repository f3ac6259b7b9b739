"""One temporal step per frame, and a small transformer over its levels."""
