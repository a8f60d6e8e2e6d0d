"""The orientation in an EXIF block.

Not Pillow's ``getexif``, which warns about corrupt blocks and decodes a whole PNG.
"""

from __future__ import annotations

import struct

UPRIGHT = 1
_ORIENTATION_TAG = 0x0112
_SHORT = 3


def orientation(block: bytes | None) -> int:
    """Return the orientation, 1 to 8.  An unreadable block means 1, upright."""
    if block is None:
        return UPRIGHT
    try:
        return _from_tiff(block.removeprefix(b"Exif\x00\x00"))
    except struct.error:
        return UPRIGHT


def _from_tiff(tiff: bytes) -> int:
    """Return the orientation tag of the first directory of a TIFF block."""
    order = {b"II*\x00": "<", b"MM\x00*": ">"}.get(tiff[:4])
    if order is None:
        return UPRIGHT
    (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
    (entries,) = struct.unpack_from(f"{order}H", tiff, directory)
    for entry in range(entries):
        tag, kind, _, value = struct.unpack_from(f"{order}HHIH", tiff, directory + 2 + 12 * entry)
        if tag == _ORIENTATION_TAG:
            return value if kind == _SHORT and 1 <= value <= 8 else UPRIGHT
    return UPRIGHT
