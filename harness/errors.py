"""What goes wrong with programs that are run as children."""

from __future__ import annotations


class HarnessError(Exception):
    """A program is not installed, did not start, or does not answer."""
