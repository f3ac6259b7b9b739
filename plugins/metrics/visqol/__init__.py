"""Virtual speech quality objective listener."""
