"""What goes wrong here."""

from __future__ import annotations


class QueryError(Exception):
    """Prometheus refused a query; the text is its own."""
