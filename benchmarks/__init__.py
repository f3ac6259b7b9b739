"""Benchmarks: how fast Segue is beside what the machine and its peers can do."""
