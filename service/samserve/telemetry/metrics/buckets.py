"""Bucket bounds of histograms, and label values of several metrics."""

from __future__ import annotations

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
PROMPTS = tuple(2**power for power in range(9))
MASKS = tuple(2**power for power in range(11))

OUTCOMES = ("ok", "cancelled", "failed")
"""Outcomes of work; exported from the start, so that a first failure is an increase from 0."""
