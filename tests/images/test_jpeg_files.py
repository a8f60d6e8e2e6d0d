"""Unusual JPEG files: other codings, no end marker, truncated anywhere."""

from __future__ import annotations

import struct
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from samserve import images
from samserve.errors import ImageUnreadable
from samserve.types import EncodedImage

from tests.core import photos
from tests.images.files import LIMITS, decoded, encoded, segment
from tests.support.cases import check_all

PHOTO = photos.named("chelsea")[:77, :91].copy()
END = b"\xff\xd9"

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "baseline": ("RGB", {}),
    "no subsampling": ("RGB", {"subsampling": 0, "quality": 97}),
    "4:2:2": ("RGB", {"subsampling": 1}),
    "optimised": ("RGB", {"optimize": True, "quality": 30}),
    "progressive": ("RGB", {"progressive": True}),
    "restarts": ("RGB", {"restart_marker_blocks": 2}),
    "restarts by row, progressive": ("RGB", {"restart_marker_rows": 1, "progressive": True}),
    "components R, G, B": ("RGB", {"keep_rgb": True}),
    "grey": ("L", {}),
    "grey, progressive": ("L", {"progressive": True}),
    "CMYK": ("CMYK", {}),
}


def jpeg(kind: str) -> bytes:
    mode, options = KINDS[kind]
    return encoded(Image.fromarray(PHOTO).convert(mode), "JPEG", **options)


def test_every_kind_decodes_as_in_opencv() -> None:
    def check(kind: str) -> None:
        file = jpeg(kind)
        other = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR)

        # The conversion of CMYK rounds differently.
        assert np.abs(decoded(file) - other[..., ::-1].astype(int)).max() <= (kind == "CMYK")

    check_all(check, {kind: kind for kind in KINDS})


def test_file_without_an_end_marker_is_decoded_if_it_has_all_pixels() -> None:
    def check(kind: str) -> None:
        file = jpeg(kind)

        assert np.array_equal(decoded(file.removesuffix(END)), decoded(file))
        assert np.array_equal(decoded(file[:-1]), decoded(file))

    check_all(check, {kind: kind for kind in KINDS})


def test_truncated_file_decodes_to_all_pixels_or_none() -> None:
    """libjpeg invents missing pixels without an error."""

    def check(kind: str) -> None:
        file = jpeg(kind)
        whole = decoded(file)
        random = np.random.default_rng(len(file))
        all_missing = [*range(3, 40), *random.integers(40, len(file), 20).tolist()]
        for missing in all_missing:
            try:
                pixels = decoded(file[:-missing])
            except ImageUnreadable:
                continue
            assert np.array_equal(pixels, whole), f"{missing} bytes less"

    check_all(check, {kind: kind for kind in KINDS})


def scan_ends(file: bytes) -> list[int]:
    """Return where each scan ends, before the tables of the next."""
    starts = [offset for offset in range(len(file)) if file[offset : offset + 2] == b"\xff\xda"]
    return [max(file.rfind(b"\xff\xc4", 0, start), 0) for start in starts[1:]]


def test_missing_scans_are_detected() -> None:
    def check(kind: str) -> None:
        file = jpeg(kind)
        ends = scan_ends(file)
        assert len(ends) > 1
        for end in ends:
            with pytest.raises(ImageUnreadable, match="truncated: a JPEG without its end marker"):
                decoded(file[:end])

    check_all(check, {kind: kind for kind in ("progressive", "grey, progressive")})


@pytest.mark.parametrize("filler", [b"\0", b"\xff", b" "], ids=["zeros", "ones", "spaces"])
def test_file_with_filler_instead_of_pixels_is_invalid(filler: bytes) -> None:
    file = jpeg("baseline")
    half = len(file) // 2

    with pytest.raises(ImageUnreadable, match="truncated"):
        decoded(file[:half] + filler * 60_000)


def with_frame(code: int, *, precision: int = 8, components: int = 3, height: int = 77) -> bytes:
    """Return a baseline file with another frame header."""
    file = jpeg("baseline")
    offset = file.index(b"\xff\xc0")
    length = struct.unpack(">H", file[offset + 2 : offset + 4])[0]
    frame = struct.pack(">BHHB", precision, height, 91, components) + b"\1\x11\0" * components
    return file[:offset] + segment(code, frame) + file[offset + 2 + length :]


def test_error_of_an_unsupported_coding_names_it_and_the_alternative() -> None:
    cases = {
        "with arithmetic coding": [with_frame(code) for code in (0xC9, 0xCA, 0xCB)],
        "with hierarchical coding": [with_frame(code) for code in (0xC5, 0xC7, 0xCD, 0xDE)],
        "with the coding of JPEG-LS": [with_frame(0xF7)],
        "of 12 bits per sample": [with_frame(code, precision=12) for code in (0xC0, 0xC1, 0xC2)],
        "of 2 components": [with_frame(0xC0, components=2)],
        "that stores its height after its pixels": [with_frame(0xC0, height=0)],
    }

    def check(case: tuple[str, list[bytes]]) -> None:
        what, files = case
        for file in files:
            for read in (images.probe, images.decode):
                with pytest.raises(
                    ImageUnreadable, match=f"is a JPEG {what}, which is not"
                ) as caught:
                    read(EncodedImage(file), LIMITS)
                assert "save it as a baseline or progressive JPEG, or as PNG" in str(caught.value)

    check_all(check, {what: (what, files) for what, files in cases.items()})


def lossless_jpeg(grey: np.ndarray) -> bytes:
    """Encode grey ``[h, w]`` losslessly: each pixel as the difference to the previous one."""
    lengths = bytearray(16)
    lengths[3] = 9
    table = segment(0xC4, b"\0" + bytes(lengths) + bytes(range(9)))
    frame = segment(0xC3, struct.pack(">BHHB", 8, *grey.shape, 1) + b"\1\x11\0")
    left = np.concatenate([np.full((1, 1), 128), grey[:-1, :1]]).astype(int)
    steps = grey - np.concatenate([left, grey[:, :-1]], axis=1)
    bits = "".join(_difference(int(step)) for step in steps.ravel())
    bits += "1" * (-len(bits) % 8)
    coded = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    return b"\xff\xd8" + table + frame + segment(0xDA, b"\1\1\0\1\0\0") + coded + END


def _difference(step: int) -> str:
    size = abs(step).bit_length()
    number = step if step > 0 else step + (1 << size) - 1
    return f"{size:04b}" + (f"{number:0{size}b}" if size else "")


def test_lossless_jpeg_is_decoded() -> None:
    grey = PHOTO[..., 1]

    assert np.array_equal(decoded(lossless_jpeg(grey))[..., 0], grey)
