"""What tracking costs, each figure against its peer in the same run. ``python -m benchmarks --help``."""
