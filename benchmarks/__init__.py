"""Benchmarks: the cost of tracking, each figure compared with a peer in the same run.

See ``python -m benchmarks --help``.
"""
