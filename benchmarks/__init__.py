"""Benchmarks: each prints a Markdown table and exits. ``python -m benchmarks --help``."""
