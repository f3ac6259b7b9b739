"""A metric of whose voice is heard."""
