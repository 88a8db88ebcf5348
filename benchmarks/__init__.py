"""Speed of fastxent beside its peers and beside the memory: ``python -m benchmarks``."""
