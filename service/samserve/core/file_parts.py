"""How many parts a picture file has, counted before a decoder works through them.

Pillow reads the parts of a header one by one in Python, some in time that grows with the square of
their number, and libjpeg goes over the whole picture again for each scan of a JPEG, however few
bytes that has.  Without bounds, a small file keeps a thread busy for minutes.
"""

from __future__ import annotations

import re

_MOST_PARTS = 4096
_MOST_SCANS = 100
"""Encoders write about ten, and a hundred cost less than the pixels of the same picture."""
_MOST_TABLE_BYTES = 1 << 16
_MOST_STRAY_BYTES = 1 << 16
# Pillow copies what it has of the first again for each of these.
_MOST_EXIF_BLOCKS = 64
_MOST_PHOTOSHOP_BLOCKS = 4096
# Encoders write 8 KiB or more into each; smaller ones take a file of tens of megabytes so far.
_MOST_CHUNKS = 1 << 16
# One is allowed. Each inflates to up to 1 MiB.
_MOST_PROFILES = 4

_SOS, _EOI = 0xDA, 0xD9
_APP_OR_COMMENT = frozenset({*range(0xE0, 0xF0), 0xFE})
_WITH_LENGTH = frozenset({*range(0xC0, 0xD0), *range(0xDA, 0xE0)}) - {0xC8} | _APP_OR_COMMENT
_WITHOUT_LENGTH = frozenset({0x00, *range(0xD0, 0xD8)})
# libjpeg reads these anew whenever Pillow has got more of the file.
_LONG_FILL = b"\xff" * _MOST_STRAY_BYTES
_FILL = re.compile(rb"\xff+")
# After the first scan: stuffed zeros and restarts belong to the data, and what is below 0xC0 is
# skipped by libjpeg without a length.
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")


class TooManyParts(ValueError):
    """The file has more parts than any picture needs; the text says of what."""


def check_jpeg(data: bytes) -> None:
    """Raise `TooManyParts` for a JPEG file that would take too long.

    Raises `ValueError` for a header that Pillow and libjpeg could read differently.  Sources:
    ITU-T T.81, annex B; Pillow JpegImagePlugin.py, ``_open``; libjpeg-turbo jdmarker.c.
    """
    first_scan = _first_scan(data)
    if data.find(_LONG_FILL, first_scan, _end_of_scans(data, first_scan)) >= 0:
        raise TooManyParts("bytes between its parts")
    for kind, most in ((b"Exif\0\0", _MOST_EXIF_BLOCKS), (b"8BIM", _MOST_PHOTOSHOP_BLOCKS)):
        if data.count(kind, 0, first_scan) > most:
            raise TooManyParts("blocks of metadata")


def check_png(data: bytes) -> None:
    """Raise `TooManyParts` for a PNG file that would take too long."""
    at, profiles = 8, 0
    for _ in range(_MOST_CHUNKS):
        kind = data[at + 4 : at + 8]
        if len(kind) < 4 or kind == b"IEND":
            return
        profiles += kind == b"iCCP"
        if profiles > _MOST_PROFILES:
            raise TooManyParts("colour profiles")
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    raise TooManyParts("chunks")


def _first_scan(data: bytes) -> int:
    """Find the marker of the first scan as Pillow does; the end if the file is cut before it."""
    at, tables, stray = 2, 0, 0
    for _ in range(_MOST_PARTS):
        fill = _FILL.search(data, at)
        if fill is None or fill.end() == len(data):
            return len(data)
        stray += fill.end() - at - 1
        at, code = fill.end() + 1, data[fill.end()]
        if code in _WITHOUT_LENGTH:
            continue
        length = int.from_bytes(data[at : at + 2], "big")
        if code not in _WITH_LENGTH or length < 2:
            raise ValueError("the header has a marker that does not belong there")
        if code == _SOS:
            return at - 2
        tables += 0 if code in _APP_OR_COMMENT else length
        at += length
        if stray > _MOST_STRAY_BYTES:
            raise TooManyParts("bytes between its parts")
        if tables > _MOST_TABLE_BYTES:
            raise TooManyParts("tables")
    raise TooManyParts("segments")


def _end_of_scans(data: bytes, at: int) -> int:
    """Find the end of the picture; counts scans on the way, never fewer than libjpeg finds."""
    scans = 0
    for _ in range(_MOST_PARTS):
        marker = _MARKER.search(data, at)
        if marker is None:
            return len(data)
        if data[marker.end() - 1] == _EOI:
            return marker.end()
        scans += data[marker.end() - 1] == _SOS
        if scans > _MOST_SCANS:
            raise TooManyParts("scans")
        at = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    raise TooManyParts("segments")
