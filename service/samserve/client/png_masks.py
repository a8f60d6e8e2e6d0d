"""Masks as PNG files."""

from __future__ import annotations

import io
import struct

import numpy as np
import numpy.typing as npt

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# After the signature: the length and the name of the first chunk, width and height.
_HEADER = struct.Struct(">I4sII")


def size(file: bytes) -> tuple[int, int]:
    """Return height and width of a PNG file; raises ``ValueError`` if it is none."""
    if not file.startswith(_SIGNATURE) or len(file) < len(_SIGNATURE) + _HEADER.size:
        raise ValueError("the server's mask is not a PNG file")
    _, _, width, height = _HEADER.unpack_from(file, len(_SIGNATURE))
    return (height, width)


def decode(file: bytes) -> npt.NDArray[np.bool_]:
    """Return the pixels that are not black, bool ``[h, w]``."""
    # Most clients use another format, and need no Pillow.
    from PIL import Image  # noqa: PLC0415

    with Image.open(io.BytesIO(file), formats=["PNG"]) as image:
        return np.asarray(image).astype(np.bool_)
