"""WebP files of unusual containers, against libwebp in OpenCV."""

from __future__ import annotations

import struct

import cv2
import numpy as np
import pytest
from samserve import images
from samserve.errors import ImageUnreadable
from samserve.types import EncodedImage

from tests.core import photos
from tests.images.files import LIMITS, decoded, encoded, over_white
from tests.support.together import check_all

PHOTO = photos.named("chelsea")[:33, :45].copy()
ALPHA = np.random.default_rng(0).integers(0, 256, PHOTO.shape[:2], dtype=np.uint8)
RGBA = np.dstack([PHOTO, ALPHA])
_ALPHA_FLAG, _ANIMATION_FLAG = 16, 2

Part = tuple[bytes, bytes]


def parts(file: bytes) -> list[Part]:
    found, at = [], 12
    while at + 8 <= len(file):
        kind, length = struct.unpack_from("<4sI", file, at)
        found.append((kind, file[at + 8 : at + 8 + length]))
        at += 8 + length + length % 2
    return found


def built(*given: Part, size: int | None = None) -> bytes:
    chunks = b"".join(
        struct.pack("<4sI", kind, len(body)) + body + b"\0" * (len(body) % 2)
        for kind, body in given
    )
    return b"RIFF" + struct.pack("<I", 4 + len(chunks) if size is None else size) + b"WEBP" + chunks


def three(number: int) -> bytes:
    return number.to_bytes(3, "little")


def extended(flags: int, width: int = 45, height: int = 33) -> Part:
    return b"VP8X", bytes([flags, 0, 0, 0]) + three(width - 1) + three(height - 1)


def one_frame() -> bytes:
    """An animation of one frame, which is smaller than its canvas."""
    place = three(2) + three(3) + three(44) + three(32) + three(100) + b"\0"
    frame = (b"ANMF", place + built(*parts(LOSSY))[12:])
    return built(extended(_ANIMATION_FLAG, 60, 50), (b"ANIM", b"\xff\0\0\xff\0\0"), frame)


LOSSY, LOSSLESS = encoded(PHOTO, "WEBP"), encoded(PHOTO, "WEBP", lossless=True)
LOSSY_ALPHA, LOSSLESS_ALPHA = (
    encoded(RGBA, "WEBP"),
    encoded(RGBA, "WEBP", lossless=True, exact=True),
)
OTHER = (b"XXXX", b"abc")


def test_every_container_shows_what_libwebp_decodes() -> None:
    def check(file: bytes) -> None:
        other = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED)
        rgb = other[..., 2::-1]
        expected = over_white(rgb, other[..., 3]) if other.shape[2] == 4 else rgb.astype(float)

        assert np.abs(decoded(file) - expected).max() <= 1

    lossy, alpha = parts(LOSSY), parts(LOSSY_ALPHA)
    cases = {
        "lossy": LOSSY,
        "lossless": LOSSLESS,
        "lossy with alpha": LOSSY_ALPHA,
        "lossless with alpha": LOSSLESS_ALPHA,
        "extended": built(extended(0), *lossy),
        "a flag of alpha without alpha": built(extended(_ALPHA_FLAG), *lossy),
        "alpha that the flag denies": built(extended(0), *alpha[1:]),
        "alpha as it is": built(alpha[0], (b"ALPH", b"\0" + ALPHA.tobytes()), alpha[2]),
        "an unknown chunk before": built(extended(0), OTHER, *lossy),
        "an unknown chunk behind": built(*lossy, OTHER),
        "bytes behind its end": LOSSY + b"bytes" * 20,
        "an animation of one frame": one_frame(),
    }
    check_all(check, cases)


def test_alpha_of_lossless_pixels_counts_whatever_the_header_says() -> None:
    file = built(extended(0), *parts(LOSSLESS_ALPHA))

    assert np.abs(decoded(file) - over_white(PHOTO, ALPHA)).max() <= 1


def test_a_mask_is_what_is_neither_black_nor_transparent() -> None:
    colours = np.zeros((4, 5, 3), np.uint8)
    colours[:, :, 2] = np.arange(5)
    alpha = np.array([0, 1, 255, 0], np.uint8)[:, None] * np.ones((1, 5), np.uint8)
    file = encoded(np.dstack([colours, alpha]), "WEBP", lossless=True, exact=True)

    found = images.decode_mask(EncodedImage(file), LIMITS)

    assert np.array_equal(found, (colours[..., 2] > 0) & (alpha > 0))


def test_what_is_damaged_or_cut_is_refused() -> None:
    alpha = parts(LOSSY_ALPHA)
    cases = {
        "another canvas": built(extended(0, 50, 40), *parts(LOSSY)),
        "a file shorter than it says": built(*parts(LOSSY), size=len(LOSSY) + 1000),
        "a file longer than it says": built(*parts(LOSSY), size=20),
        "alpha that is cut": built(alpha[0], (b"ALPH", alpha[1][1][:10]), alpha[2]),
        **{f"lossy, {cut} bytes less": LOSSY[:-cut] for cut in (2, 8, 50)},
        **{f"lossless, {cut} bytes less": LOSSLESS[:-cut] for cut in (2, 8, 50)},
    }

    def check(file: bytes) -> None:
        with pytest.raises(ImageUnreadable, match="damaged"):
            decoded(file)

    check_all(check, cases)
