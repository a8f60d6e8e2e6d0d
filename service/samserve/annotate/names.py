"""Numbers that follow from the names of images, so that processes need not agree on them."""

from __future__ import annotations

import hashlib

# A number that JSON readers keep, those of JavaScript included.
_BITS = 53


def image_id(name: str) -> int:
    """Return the id of an image: positive, below 2**53."""
    return number_of("image", name)


def annotation_id(name: str, number: int) -> int:
    """Return the id of the annotation with that number, from 1, of an image: as `image_id`."""
    return number_of("annotation", f"{name}\0{number}")


def number_of(kind: str, text: str) -> int:
    """Return a positive number below 2**53 that depends on the two texts only."""
    data = f"{kind}\0{text}".encode("utf-8", "surrogateescape")
    digest = hashlib.sha256(data).digest()
    return (int.from_bytes(digest[:8], "big") >> (64 - _BITS)) or 1
