"""What goes wrong here."""

from __future__ import annotations


class HarnessError(Exception):
    """The receiver did not start, or what was waited for did not arrive."""
