"""Checks of a JPEG file's segments before a decoder reads them.

Pillow reads the segments of a header one by one in Python, some in time that grows with the square
of their number, and libjpeg passes over the whole image for each scan, even one of a few bytes.
Without limits, a small file occupies a thread for minutes.

Sources: ITU-T T.81, annexes B and G; Pillow JpegImagePlugin.py, ``_open``; libjpeg-turbo
jdmarker.c.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from samserve.errors import ImageUnreadable
from samserve.images.errors import unreadable

START = b"\xff\xd8\xff"
_MAX_SEGMENTS = 4096
_MAX_SCANS = 100
"""Encoders write about ten; a hundred cost less than the pixels of the same image."""
_MAX_TABLE_BYTES = 1 << 16
_MAX_STRAY_BYTES = 1 << 16
# For each of these Pillow copies again what it has collected so far.
_MAX_EXIF_BLOCKS = 64
_MAX_PHOTOSHOP_BLOCKS = 4096

_SOS, _EOI = 0xDA, 0xD9
_APP_OR_COMMENT = frozenset({*range(0xE0, 0xF0), 0xFE})
_WITH_LENGTH = frozenset({*range(0xC0, 0xD0), *range(0xDA, 0xE0), 0xF7}) - {0xC8} | _APP_OR_COMMENT
_WITHOUT_LENGTH = frozenset({0x00, *range(0xD0, 0xD8)})
_FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC3})
"""Baseline, extended, progressive and lossless with Huffman coding: what libjpeg-turbo reads."""
_OTHER_CODINGS = {
    **dict.fromkeys((0xC9, 0xCA, 0xCB), "arithmetic coding"),
    **dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF, 0xDE, 0xDF), "hierarchical coding"),
    0xF7: "the coding of JPEG-LS",
}
_UNSUPPORTED = "is not supported; save it as a baseline or progressive JPEG, or as PNG"
# libjpeg reads fill bytes again each time Pillow has read more of the file.
_LONG_FILL = b"\xff" * _MAX_STRAY_BYTES
_FILL = re.compile(rb"\xff+")
# After the first scan: stuffed zeros and restart markers belong to the data, and libjpeg skips
# markers below 0xC0 without reading a length.
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")
_COEFFICIENTS = 64
_PROGRESSIVE = 0xC2


@dataclass(frozen=True, slots=True)
class JpegFile:
    """Completeness of a JPEG file.

    ``has_all_scans`` is True if its scans cover every coefficient of every component to the last
    bit.  Whether each scan is complete is left to the decoder.
    """

    has_end_marker: bool
    has_all_scans: bool


@dataclass(frozen=True, slots=True)
class _Frame:
    """The kind of coding and the identifiers of the components."""

    code: int = 0
    components: bytes = b""


def read(data: bytes) -> JpegFile:
    """Read the segments of a file that begins with ``START``.

    Raises ``ImageUnreadable`` for a file that would take too long to decode, for an unsupported
    coding, and for a header that Pillow and libjpeg could interpret differently.
    """
    first_scan, frame = _first_scan(data)
    end, scans = _end_of_scans(data, first_scan)
    if data.find(_LONG_FILL, first_scan, len(data) if end is None else end) >= 0:
        raise _too_many("bytes between its parts")
    for pattern, limit in ((b"Exif\0\0", _MAX_EXIF_BLOCKS), (b"8BIM", _MAX_PHOTOSHOP_BLOCKS)):
        if data.count(pattern, 0, first_scan) > limit:
            raise _too_many("blocks of metadata")
    return JpegFile(end is not None, _has_all_coefficients(frame, scans))


def _too_many(what: str) -> ImageUnreadable:
    return unreadable(f"has too many {what}; save it again")


def _first_scan(data: bytes) -> tuple[int, _Frame]:
    """Return the offset of the first scan's marker as Pillow finds it, or the file's length."""
    offset, tables, stray, frame = 2, 0, 0, _Frame()
    for _ in range(_MAX_SEGMENTS):
        fill = _FILL.search(data, offset)
        if fill is None or fill.end() == len(data):
            return len(data), frame
        stray += fill.end() - offset - 1
        offset, code = fill.end() + 1, data[fill.end()]
        if code in _WITHOUT_LENGTH:
            continue
        length = int.from_bytes(data[offset : offset + 2], "big")
        if code not in _WITH_LENGTH or length < 2:
            raise unreadable("is corrupt: a JPEG with an unexpected marker in its header")
        if code == _SOS:
            return offset - 2, frame
        frame = _read_frame(code, data[offset + 2 : offset + length]) or frame
        tables += 0 if code in _APP_OR_COMMENT else length
        offset += length
        if stray > _MAX_STRAY_BYTES:
            raise _too_many("bytes between its parts")
        if tables > _MAX_TABLE_BYTES:
            raise _too_many("tables")
    raise _too_many("segments")


def _read_frame(code: int, content: bytes) -> _Frame | None:
    """Parse the segment of a frame header; raise for a coding that the decoder cannot read."""
    coding = _OTHER_CODINGS.get(code)
    if code not in _FRAMES and coding is None:
        return None
    if coding is not None:
        raise unreadable(f"is a JPEG with {coding}, which {_UNSUPPORTED}")
    if len(content) < 6:
        raise unreadable("is corrupt: a JPEG with a frame header that is too short")
    precision, height, count = content[0], content[1:3], content[5]
    if precision != 8:
        raise unreadable(f"is a JPEG of {precision} bits per sample, which {_UNSUPPORTED}")
    if count not in (1, 3, 4):
        raise unreadable(f"is a JPEG of {count} components, which {_UNSUPPORTED}")
    if height == b"\0\0":
        raise unreadable(f"is a JPEG that stores its height after its pixels, which {_UNSUPPORTED}")
    return _Frame(code, content[6 : 6 + 3 * count : 3])


def _end_of_scans(data: bytes, offset: int) -> tuple[int | None, list[bytes]]:
    """Return the offset of the image's end, or None, and the headers of its scans.

    It never finds fewer scans than libjpeg does.
    """
    scans: list[bytes] = []
    for _ in range(_MAX_SEGMENTS):
        marker = _MARKER.search(data, offset)
        if marker is None:
            return None, scans
        code, offset = data[marker.end() - 1], marker.end()
        if code == _EOI:
            return offset, scans
        length = int.from_bytes(data[offset : offset + 2], "big")
        if code == _SOS:
            scans.append(data[offset + 2 : offset + length])
        if len(scans) > _MAX_SCANS:
            raise _too_many("scans")
        offset += length
    raise _too_many("segments")


def _has_all_coefficients(frame: _Frame, scans: list[bytes]) -> bool:
    """Return whether the scans cover every component and all of its coefficients."""
    missing = {component: {*range(_COEFFICIENTS)} for component in frame.components}
    for scan in scans:
        count = scan[0] if scan else 0
        if len(scan) != 2 * count + 4:
            return False
        start, end, bits = scan[-3], scan[-2], scan[-1] & 15
        # Only a progressive scan has a range of coefficients, or leaves bits to other scans.
        covered = range(start, end + 1) if frame.code == _PROGRESSIVE else range(_COEFFICIENTS)
        for component in scan[1 : 1 + 2 * count : 2]:
            if bits == 0 or frame.code != _PROGRESSIVE:
                missing.get(component, set()).difference_update(covered)
    return bool(missing) and not any(missing.values())
