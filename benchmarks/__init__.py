"""What the worker's two expensive parts cost beside what one would otherwise use: `python -m benchmarks`."""
