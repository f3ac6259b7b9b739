"""Serve pipelines over HTTP: `segue serve`. Needs ``segue[serve]``."""
