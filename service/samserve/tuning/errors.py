"""Errors of fine-tuning, each with a text of one line for the user."""

from __future__ import annotations


class TuningError(Exception):
    """A data set, a model or an option is not suitable."""


class NotBetter(TuningError):
    """The tuned model is not better than the one that it began with."""
