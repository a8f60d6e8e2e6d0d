"""WebP files with unusual containers, compared with OpenCV's libwebp."""

from __future__ import annotations

import struct

import cv2
import numpy as np
import pytest
from samserve import images
from samserve.errors import ImageUnreadable
from samserve.types import EncodedImage

from tests.core import photos
from tests.images.files import LIMITS, blend_with_white, decoded, encoded
from tests.support.cases import check_all

PHOTO = photos.named("chelsea")[:33, :45].copy()
ALPHA = np.random.default_rng(0).integers(0, 256, PHOTO.shape[:2], dtype=np.uint8)
RGBA = np.dstack([PHOTO, ALPHA])
_ALPHA_FLAG, _ANIMATION_FLAG = 16, 2

Chunk = tuple[bytes, bytes]


def chunks_of(file: bytes) -> list[Chunk]:
    found, offset = [], 12
    while offset + 8 <= len(file):
        kind, length = struct.unpack_from("<4sI", file, offset)
        found.append((kind, file[offset + 8 : offset + 8 + length]))
        offset += 8 + length + length % 2
    return found


def webp_file(*members: Chunk, size: int | None = None) -> bytes:
    chunks = b"".join(
        struct.pack("<4sI", kind, len(body)) + body + b"\0" * (len(body) % 2)
        for kind, body in members
    )
    return b"RIFF" + struct.pack("<I", 4 + len(chunks) if size is None else size) + b"WEBP" + chunks


def uint24(number: int) -> bytes:
    return number.to_bytes(3, "little")


def extended(flags: int, width: int = 45, height: int = 33) -> Chunk:
    return b"VP8X", bytes([flags, 0, 0, 0]) + uint24(width - 1) + uint24(height - 1)


def one_frame() -> bytes:
    """Return an animation of one frame that is smaller than its canvas."""
    frame_header = uint24(2) + uint24(3) + uint24(44) + uint24(32) + uint24(100) + b"\0"
    frame = (b"ANMF", frame_header + webp_file(*chunks_of(LOSSY))[12:])
    return webp_file(extended(_ANIMATION_FLAG, 60, 50), (b"ANIM", b"\xff\0\0\xff\0\0"), frame)


LOSSY, LOSSLESS = encoded(PHOTO, "WEBP"), encoded(PHOTO, "WEBP", lossless=True)
LOSSY_ALPHA, LOSSLESS_ALPHA = (
    encoded(RGBA, "WEBP"),
    encoded(RGBA, "WEBP", lossless=True, exact=True),
)
OTHER = (b"XXXX", b"abc")


def test_every_container_decodes_as_in_libwebp() -> None:
    def check(file: bytes) -> None:
        other = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED)
        rgb = other[..., 2::-1]
        expected = (
            blend_with_white(rgb, other[..., 3]) if other.shape[2] == 4 else rgb.astype(float)
        )

        assert np.abs(decoded(file) - expected).max() <= 1

    lossy, alpha = chunks_of(LOSSY), chunks_of(LOSSY_ALPHA)
    cases = {
        "lossy": LOSSY,
        "lossless": LOSSLESS,
        "lossy with alpha": LOSSY_ALPHA,
        "lossless with alpha": LOSSLESS_ALPHA,
        "extended": webp_file(extended(0), *lossy),
        "an alpha flag without alpha": webp_file(extended(_ALPHA_FLAG), *lossy),
        "alpha without its flag": webp_file(extended(0), *alpha[1:]),
        "uncompressed alpha": webp_file(alpha[0], (b"ALPH", b"\0" + ALPHA.tobytes()), alpha[2]),
        "an unknown chunk before": webp_file(extended(0), OTHER, *lossy),
        "an unknown chunk after": webp_file(*lossy, OTHER),
        "bytes after its end": LOSSY + b"bytes" * 20,
        "an animation of one frame": one_frame(),
    }
    check_all(check, cases)


def test_alpha_of_lossless_pixels_is_used_without_the_alpha_flag() -> None:
    file = webp_file(extended(0), *chunks_of(LOSSLESS_ALPHA))

    assert np.abs(decoded(file) - blend_with_white(PHOTO, ALPHA)).max() <= 1


def test_foreground_of_a_mask_is_neither_black_nor_transparent() -> None:
    colours = np.zeros((4, 5, 3), np.uint8)
    colours[:, :, 2] = np.arange(5)
    alpha = np.array([0, 1, 255, 0], np.uint8)[:, None] * np.ones((1, 5), np.uint8)
    file = encoded(np.dstack([colours, alpha]), "WEBP", lossless=True, exact=True)

    found = images.decode_mask(EncodedImage(file), LIMITS)

    assert np.array_equal(found, (colours[..., 2] > 0) & (alpha > 0))


def test_corrupt_and_truncated_files_are_invalid() -> None:
    alpha = chunks_of(LOSSY_ALPHA)
    cases = {
        "another canvas": webp_file(extended(0, 50, 40), *chunks_of(LOSSY)),
        "a file shorter than its header says": webp_file(*chunks_of(LOSSY), size=len(LOSSY) + 1000),
        "a file longer than its header says": webp_file(*chunks_of(LOSSY), size=20),
        "truncated alpha": webp_file(alpha[0], (b"ALPH", alpha[1][1][:10]), alpha[2]),
        **{f"lossy, {cut} bytes less": LOSSY[:-cut] for cut in (2, 8, 50)},
        **{f"lossless, {cut} bytes less": LOSSLESS[:-cut] for cut in (2, 8, 50)},
    }

    def check(file: bytes) -> None:
        with pytest.raises(ImageUnreadable, match="corrupt"):
            decoded(file)

    check_all(check, cases)
