"""Benchmarks: figures beside those of others, taken in the same run. Nothing here is a timed test."""
