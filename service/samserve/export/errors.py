"""What export refuses; it runs at a command line, so it stays outside the tree of gRPC errors."""

from __future__ import annotations


class ExportError(Exception):
    """A checkpoint or a graph cannot be served; the text says what is wrong with it."""
