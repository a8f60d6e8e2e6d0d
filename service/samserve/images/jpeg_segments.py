"""A JPEG file by its segments, before a decoder works through them.

Pillow reads the segments of a header one by one in Python, some in time that grows with the square
of their number, and libjpeg goes over the whole image again for each scan, however few bytes that
has.  Without bounds, a small file keeps a thread busy for minutes.

Sources: ITU-T T.81, annexes B and G; Pillow JpegImagePlugin.py, ``_open``; libjpeg-turbo
jdmarker.c.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from samserve.errors import ImageUnreadable
from samserve.images.refusal import unreadable

START = b"\xff\xd8\xff"
_MOST_PARTS = 4096
_MOST_SCANS = 100
"""Encoders write about ten, and a hundred cost less than the pixels of the same image."""
_MOST_TABLE_BYTES = 1 << 16
_MOST_STRAY_BYTES = 1 << 16
# Pillow copies what it has of the first again for each of these.
_MOST_EXIF_BLOCKS = 64
_MOST_PHOTOSHOP_BLOCKS = 4096

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
_CURE = "is not supported; save it as a baseline or progressive JPEG, or as PNG"
# libjpeg reads these again whenever Pillow has got more of the file.
_LONG_FILL = b"\xff" * _MOST_STRAY_BYTES
_FILL = re.compile(rb"\xff+")
# After the first scan: stuffed zeros and restarts belong to the data, and what is below 0xC0 is
# skipped by libjpeg without a length.
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")
_COEFFICIENTS = 64
_PROGRESSIVE = 0xC2


@dataclass(frozen=True, slots=True)
class JpegFile:
    """What a JPEG file says of its pixels.

    ``ended`` if it has its end marker.  ``has_all_scans`` if its scans come to every coefficient
    of every component, to the last bit; whether each scan is whole is for the decoder to find out.
    """

    ended: bool
    has_all_scans: bool


@dataclass(frozen=True, slots=True)
class _Frame:
    """The kind of coding and the identifiers of the components."""

    code: int = 0
    components: bytes = b""


def read(data: bytes) -> JpegFile:
    """Go through a file that begins with ``START``.

    Raises ``ImageUnreadable`` for one that would take too long, for one of a coding that is not
    supported, and for a header that Pillow and libjpeg could read differently.
    """
    first_scan, frame = _first_scan(data)
    end, scans = _end_of_scans(data, first_scan)
    if data.find(_LONG_FILL, first_scan, len(data) if end is None else end) >= 0:
        raise _too_many("bytes between its parts")
    for kind, most in ((b"Exif\0\0", _MOST_EXIF_BLOCKS), (b"8BIM", _MOST_PHOTOSHOP_BLOCKS)):
        if data.count(kind, 0, first_scan) > most:
            raise _too_many("blocks of metadata")
    return JpegFile(end is not None, _has_all(frame, scans))


def _too_many(what: str) -> ImageUnreadable:
    return unreadable(f"has too many {what}; save it again")


def _first_scan(data: bytes) -> tuple[int, _Frame]:
    """Find the marker of the first scan as Pillow does; the end if the file is cut before it."""
    at, tables, stray, frame = 2, 0, 0, _Frame()
    for _ in range(_MOST_PARTS):
        fill = _FILL.search(data, at)
        if fill is None or fill.end() == len(data):
            return len(data), frame
        stray += fill.end() - at - 1
        at, code = fill.end() + 1, data[fill.end()]
        if code in _WITHOUT_LENGTH:
            continue
        length = int.from_bytes(data[at : at + 2], "big")
        if code not in _WITH_LENGTH or length < 2:
            raise unreadable("is damaged: a JPEG with a marker that does not belong there")
        if code == _SOS:
            return at - 2, frame
        frame = _read_frame(code, data[at + 2 : at + length]) or frame
        tables += 0 if code in _APP_OR_COMMENT else length
        at += length
        if stray > _MOST_STRAY_BYTES:
            raise _too_many("bytes between its parts")
        if tables > _MOST_TABLE_BYTES:
            raise _too_many("tables")
    raise _too_many("segments")


def _read_frame(code: int, content: bytes) -> _Frame | None:
    """Read a segment if it is the header of a frame; name what the decoder cannot read."""
    coding = _OTHER_CODINGS.get(code)
    if code not in _FRAMES and coding is None:
        return None
    if coding is not None:
        raise unreadable(f"is a JPEG with {coding}, which {_CURE}")
    if len(content) < 6:
        raise unreadable("is damaged: a JPEG with a header that is too short")
    precision, height, count = content[0], content[1:3], content[5]
    if precision != 8:
        raise unreadable(f"is a JPEG of {precision} bits per sample, which {_CURE}")
    if count not in (1, 3, 4):
        raise unreadable(f"is a JPEG of {count} components, which {_CURE}")
    if height == b"\0\0":
        raise unreadable(f"is a JPEG that has its height behind its pixels, which {_CURE}")
    return _Frame(code, content[6 : 6 + 3 * count : 3])


def _end_of_scans(data: bytes, at: int) -> tuple[int | None, list[bytes]]:
    """Find the end of the image, None if it has none, and the headers of its scans.

    These are never fewer than libjpeg finds.
    """
    scans: list[bytes] = []
    for _ in range(_MOST_PARTS):
        marker = _MARKER.search(data, at)
        if marker is None:
            return None, scans
        code, at = data[marker.end() - 1], marker.end()
        if code == _EOI:
            return at, scans
        length = int.from_bytes(data[at : at + 2], "big")
        if code == _SOS:
            scans.append(data[at + 2 : at + length])
        if len(scans) > _MOST_SCANS:
            raise _too_many("scans")
        at += length
    raise _too_many("segments")


def _has_all(frame: _Frame, scans: list[bytes]) -> bool:
    """Whether the scans come to every component, and to all of its coefficients."""
    missing = {component: {*range(_COEFFICIENTS)} for component in frame.components}
    for scan in scans:
        count = scan[0] if scan else 0
        if len(scan) != 2 * count + 4:
            return False
        start, end, bits = scan[-3], scan[-2], scan[-1] & 15
        # Only a progressive scan has some coefficients, and leaves bits of them to others.
        taken = range(start, end + 1) if frame.code == _PROGRESSIVE else range(_COEFFICIENTS)
        for component in scan[1 : 1 + 2 * count : 2]:
            if bits == 0 or frame.code != _PROGRESSIVE:
                missing.get(component, set()).difference_update(taken)
    return bool(missing) and not any(missing.values())
