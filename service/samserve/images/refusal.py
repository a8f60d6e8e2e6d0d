"""The one error of this package for files, with the field that clients know."""

from __future__ import annotations

from samserve.errors import ImageUnreadable

ENCODED = "image.encoded"


def unreadable(text: str, **metadata: str) -> ImageUnreadable:
    """Make the error whose text goes on after "image.encoded: "; it quotes nothing of the file."""
    return ImageUnreadable(ENCODED, text, metadata=metadata)
