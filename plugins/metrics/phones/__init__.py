"""Metrics of what a phone recogniser hears."""
