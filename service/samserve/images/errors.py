"""The error of this package for image files, with the field of the request."""

from __future__ import annotations

from samserve.errors import ImageUnreadable

ENCODED = "image.encoded"


def unreadable(text: str, **metadata: str) -> ImageUnreadable:
    """Return the error; *text* continues "image.encoded: " and must not quote the file."""
    return ImageUnreadable(ENCODED, text, metadata=metadata)
