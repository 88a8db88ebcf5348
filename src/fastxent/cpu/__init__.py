"""The CPU side: rows.py (views), run.py (calls), engine.pyx (threads and blocks), kernels/ (arithmetic)."""
