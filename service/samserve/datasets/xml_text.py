"""Texts in XML files that are written."""

from __future__ import annotations

import re

from samserve.errors import InvalidRequest

# What XML has no way to write.
_ILLEGAL = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def legal(text: str, place: str) -> str:
    """Return a text.  Raises `InvalidRequest`, which names *place*, if XML cannot hold it."""
    if _ILLEGAL.search(text):
        raise InvalidRequest(place, f"has a character that XML cannot hold: {text[:60]!r}")
    return text
