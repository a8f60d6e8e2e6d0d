"""What goes wrong here."""

from __future__ import annotations


class HarnessError(Exception):
    """A program is not installed, did not start, or does not answer."""


class QueryError(Exception):
    """Prometheus refused a query; the text is its own."""
