"""A decoding step for CPUs in C.

A step consists of many small operations. Calling them one by one from Python and PyTorch would take
longer than reading the weights.
"""
