"""Errors of programs that run as child processes."""

from __future__ import annotations


class HarnessError(Exception):
    """A program is not installed, did not start, or does not respond."""
