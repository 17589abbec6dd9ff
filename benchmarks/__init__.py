"""Benchmarks: the cost of tracking, each figure next to a peer measured in the same run.

See ``python -m benchmarks --help``.
"""
