"""A decoding step for CPUs in C: what Python and PyTorch add to each of a step's many operations
would otherwise take longer than reading the weights."""
