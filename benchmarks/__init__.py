"""Benchmarks: speed as ratios to baselines of the same run."""
