"""A decoding step for CPUs in C.

What Python and PyTorch add to each of a step's many small operations would otherwise take longer
than reading the weights.
"""
