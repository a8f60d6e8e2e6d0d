"""Errors of the export; a command-line tool, so they are not part of the gRPC error classes."""

from __future__ import annotations


class ExportError(Exception):
    """A checkpoint or a graph cannot be served; the text names the reason."""
