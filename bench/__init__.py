"""Benchmarks: `make bench` prints every performance claim as a ratio against the real alternative, in one run."""
