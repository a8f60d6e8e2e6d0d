import struct
import tracemalloc
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps
from samserve import images
from samserve.errors import ImageTooLarge, ImageUnreadable, InvalidRequest
from samserve.types import EncodedImage, Orientation, RawImage, RawLayout, Size

from tests.core import photos
from tests.images.files import LIMITS, decoded, encoded, segment
from tests.support.examples import examples
from tests.support.png import chunk

PHOTO = photos.named("chelsea")[:120, :91].copy()


def photo() -> Image.Image:
    return Image.fromarray(PHOTO)


def with_orientation(value: int, kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x010F] = "a maker"
    exif[0x0112] = value
    return encoded(photo(), kind, exif=exif)


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)


def webp_header(width: int, height: int) -> bytes:
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + canvas
    return b"RIFF" + struct.pack("<I", len(body)) + body


def jpeg_header(width: int, height: int) -> bytes:
    file = bytearray(encoded(photo(), "JPEG"))
    offset = file.index(b"\xff\xc0")
    file[offset + 5 : offset + 9] = struct.pack(">HH", height, width)
    return bytes(file)


def test_sixteen_bit_grey_is_scaled_by_257() -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)

    rgb = decoded(encoded(values))

    assert rgb[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("value", range(1, 9))
def test_exif_orientation_is_applied(value: int, kind: str) -> None:
    file = with_orientation(value, kind)

    rgb = decoded(file)

    upright = ImageOps.exif_transpose(Image.open(BytesIO(file))).convert("RGB")
    assert np.array_equal(rgb, np.asarray(upright))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_can_be_ignored(kind: str) -> None:
    rgb = decoded(with_orientation(6, kind), Orientation.IGNORE)

    assert rgb.shape == PHOTO.shape


@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_orientation_is_read_in_both_byte_orders(order: str) -> None:
    mark = {"<": b"II*\x00", ">": b"MM\x00*"}[order]
    entry = struct.pack(f"{order}HHIHH", 0x0112, 3, 1, 6, 0)
    tiff = mark + struct.pack(f"{order}IH", 8, 1) + entry + bytes(4)

    rgb = decoded(encoded(photo(), "PNG", exif=tiff))

    assert np.array_equal(rgb, np.rot90(PHOTO, -1))


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"II*\x00",
        b"II*\x00\xff\xff\xff\xff",
        b"nonsense",
        b"MM\x00*" + b"\x00\x00\x00\x08\xff",
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_corrupt_exif_means_no_orientation(exif: bytes, kind: str) -> None:
    rgb = decoded(encoded(photo(), kind, exif=b"Exif\x00\x00" + exif))

    assert rgb.shape == PHOTO.shape


def test_colour_profile_is_ignored() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()

    assert np.array_equal(decoded(encoded(photo(), icc_profile=profile)), PHOTO)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_animated_file_is_invalid(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    file = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)

    for read in (images.probe, images.decode):
        with pytest.raises(ImageUnreadable, match="animated with 3 frames"):
            read(EncodedImage(file), LIMITS)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PPM"])
def test_other_formats_are_invalid(kind: str) -> None:
    with pytest.raises(ImageUnreadable, match="not a JPEG, PNG or WebP") as caught:
        images.probe(EncodedImage(encoded(photo(), kind)), LIMITS)

    assert caught.value.violations[0].field == "image.encoded"


def test_empty_file_is_invalid() -> None:
    with pytest.raises(ImageUnreadable, match="empty"):
        images.probe(EncodedImage(b""), LIMITS)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9])
def test_truncated_file_is_invalid(kind: str, ratio: float) -> None:
    file = encoded(photo(), kind)

    with pytest.raises(ImageUnreadable, match=r"corrupt|truncated"):
        images.decode(EncodedImage(file[: int(len(file) * ratio)]), LIMITS)


@pytest.mark.parametrize("header", [png_header, webp_header, jpeg_header])
@pytest.mark.parametrize("read", [images.probe, images.decode])
def test_decompression_bomb_is_detected_from_its_header(
    header: Callable[[int, int], bytes], read: Callable[..., Any]
) -> None:
    file = header(30000, 30000) + chunk(b"IDAT", zlib.compress(bytes(1_000_000)))
    image = EncodedImage(file)

    tracemalloc.start()
    with pytest.raises(ImageTooLarge, match="30000 pixels on its longer side") as caught:
        read(image, LIMITS)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 1_000_000
    assert caught.value.metadata == {"limit": "4000", "actual": "30000"}
    assert caught.value.violations[0].field == "image.encoded"


def test_pixel_limit_applies_if_each_side_is_within_its_limit() -> None:
    with pytest.raises(ImageTooLarge, match="4002000 pixels in all, the limit is 4000000"):
        images.probe(EncodedImage(png_header(2001, 2000) + chunk(b"IDAT", b"")), LIMITS)


def test_image_at_the_limits_is_accepted() -> None:
    limits = images.ImageLimits(max_pixels=120 * 91, max_side=120)

    assert images.probe(EncodedImage(encoded(photo())), limits) == Size(120, 91)


def jpeg_with(*, head: bytes = b"", tail: bytes = b"") -> bytes:
    """Return a JPEG with bytes added after its first marker or before its last."""
    file = encoded(photo(), "JPEG")
    return file[:2] + head + file[2:-2] + tail + file[-2:]


def png_with(*, head: bytes = b"", tail: bytes = b"") -> bytes:
    """Return a PNG with bytes added after its header or before its last chunk."""
    file = encoded(photo())
    return file[:33] + head + file[33:-12] + tail + file[-12:]


EXIF = segment(0xE1, b"Exif\x00\x00II*\x00")
SCAN = segment(0xDA, b"\x01\x01\x00\x00\x3f\x00")
PHOTOSHOP = segment(0xED, b"Photoshop 3.0\x00" + b"8BIM\x00\x01\x00\x00\x00\x00\x00\x00" * 100)


# Repeated up to the size limit of a request, each of these took seconds to hours to decode, mostly
# holding the GIL.
@pytest.mark.parametrize("read", [images.probe, images.decode])
@pytest.mark.parametrize(
    ("file", "what"),
    [
        (jpeg_with(tail=SCAN * 101), "scans"),
        (jpeg_with(head=segment(0xFE) * 5000), "segments"),
        (jpeg_with(tail=segment(0xFE) * 5000), "segments"),
        (jpeg_with(head=b"\xff\xd0" * 5000), "segments"),
        (jpeg_with(head=segment(0xDB, b"\x00" + b"\x01" * 64) * 1000), "tables"),
        (jpeg_with(head=EXIF * 65), "blocks of metadata"),
        (jpeg_with(head=PHOTOSHOP * 41), "blocks of metadata"),
        (jpeg_with(head=b"\xff" * 70_000), "bytes between its parts"),
        (jpeg_with(head=EXIF + bytes(70_000)), "bytes between its parts"),
        (jpeg_with(tail=b"\xff" * 70_000), "bytes between its parts"),
        (png_with(head=chunk(b"xxXx", b"") * 70_000), "chunks"),
        (png_with(tail=chunk(b"IDAT", b"") * 70_000), "chunks"),
    ],
    ids=range(12),
)
def test_file_of_too_many_parts_is_invalid(
    file: bytes, what: str, read: Callable[..., Any]
) -> None:
    with pytest.raises(ImageUnreadable, match=f"has too many {what}; save it again"):
        read(EncodedImage(file), LIMITS)


@pytest.mark.parametrize(
    "file",
    [
        jpeg_with(head=segment(0xE2, bytes(60_000)) * 200),
        jpeg_with(head=EXIF + b"\xff" * 1000),
        jpeg_with(head=EXIF + bytes(1000)),
        jpeg_with(head=EXIF) + SCAN * 200 + EXIF * 200 + b"\xff" * 200_000,
        encoded(photo(), "JPEG", restart_marker_blocks=1),
        encoded(photo(), "JPEG", progressive=True, restart_marker_blocks=1),
    ],
    ids=["metadata", "fill", "stray bytes", "after its end", "restarts", "progressive"],
)
def test_jpeg_of_unusual_parts_is_decoded(file: bytes) -> None:
    plain = encoded(photo(), "JPEG")

    assert np.abs(decoded(file).astype(int) - decoded(plain)).max() <= 1


def test_png_of_many_small_chunks_is_decoded() -> None:
    file = encoded(photo())
    offset = file.index(b"IDAT")
    (length,) = struct.unpack(">I", file[offset - 4 : offset])
    pixels = file[offset + 4 : offset + 4 + length]
    chunks = b"".join(chunk(b"IDAT", pixels[i : i + 1]) for i in range(length))

    assert np.array_equal(decoded(file[: offset - 4] + chunks + file[-12:]), PHOTO)


@pytest.mark.parametrize("code", [0x01, 0xC8, 0xD8, 0xD9, 0xF0])
def test_jpeg_header_of_unexpected_markers_is_invalid(code: int) -> None:
    with pytest.raises(ImageUnreadable, match="corrupt"):
        images.probe(EncodedImage(jpeg_with(head=EXIF + bytes([0xFF, code]))), LIMITS)


@pytest.mark.parametrize(
    ("layout", "channels"),
    [(RawLayout.RGB, slice(None)), (RawLayout.BGR, slice(None, None, -1))],
)
def test_raw_channels_are_converted_to_rgb(layout: RawLayout, channels: slice) -> None:
    image = RawImage(PHOTO[..., channels].tobytes(), Size(120, 91), layout)

    rgb = images.decode(image, LIMITS)

    assert np.array_equal(rgb, PHOTO)
    assert rgb.flags.c_contiguous
    assert images.probe(image, LIMITS) == Size(120, 91)


def test_raw_grey_is_replicated() -> None:
    rgb = images.decode(RawImage(bytes([1, 2, 3]), Size(1, 3), RawLayout.GRAY), LIMITS)

    assert rgb.tolist() == [[[1] * 3, [2] * 3, [3] * 3]]


@pytest.mark.parametrize("size", [Size(0, 5), Size(5, 0), Size(-1, -1)], ids=str)
@pytest.mark.parametrize("read", [images.probe, images.decode])
def test_raw_size_must_be_positive(size: Size, read: Callable[..., Any]) -> None:
    with pytest.raises(InvalidRequest, match="must be positive") as caught:
        read(RawImage(b"abc", size), LIMITS)

    assert caught.value.violations[0].field == "image.raw.size"


@pytest.mark.parametrize("length", [0, 17, 19])
@pytest.mark.parametrize("read", [images.probe, images.decode])
def test_number_of_raw_bytes_must_match_the_size(length: int, read: Callable[..., Any]) -> None:
    with pytest.raises(InvalidRequest, match="must have 18 bytes") as caught:
        read(RawImage(bytes(length), Size(2, 3)), LIMITS)

    assert caught.value.violations[0].field == "image.raw.data"
    assert caught.value.metadata == {"expected": "18", "actual": str(length)}


def test_size_limit_of_a_raw_image_is_checked_before_its_bytes() -> None:
    with pytest.raises(ImageTooLarge, match="the limit is 4000") as caught:
        images.decode(RawImage(b"", Size(2, 100_000)), LIMITS)

    assert caught.value.violations[0].field == "image.raw.size"


def real_files() -> list[bytes]:
    small = photo().resize((24, 17))
    return [
        encoded(small, "JPEG"),
        encoded(small, "JPEG", progressive=True),
        with_orientation(6, "JPEG"),
        with_orientation(3, "PNG"),
        encoded(small, "WEBP"),
        encoded(small, "WEBP", lossless=True, exif=b"Exif\x00\x00II*\x00"),
        encoded(small.quantize(7)),
        encoded(small.convert("RGBA"), "WEBP"),
    ]


REAL_FILES = real_files()
FUZZ_LIMITS = images.ImageLimits(max_pixels=1_000_000, max_side=4000)


def assert_only_documented_errors(file: bytes) -> None:
    for read in (images.probe, images.decode, images.decode_mask):
        try:
            read(EncodedImage(file), FUZZ_LIMITS)
        except InvalidRequest:
            continue


@examples(300)
@given(
    st.sampled_from(REAL_FILES),
    st.lists(st.tuples(st.floats(0, 0.9999), st.binary(min_size=1, max_size=4)), max_size=6),
    st.floats(0, 1),
)
def test_corrupt_files_raise_only_documented_errors(
    file: bytes, changes: list[tuple[float, bytes]], kept_ratio: float
) -> None:
    corrupt = bytearray(file)
    for position, content in changes:
        offset = int(position * len(file))
        corrupt[offset : offset + len(content)] = content

    assert_only_documented_errors(bytes(corrupt))
    assert_only_documented_errors(bytes(corrupt[: int(kept_ratio * len(corrupt))]))


@examples(200)
@given(
    st.sampled_from([b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\x10\x00\x00\x00WEBPVP8X", b""]),
    st.binary(max_size=200),
)
def test_any_bytes_raise_only_documented_errors(start: bytes, rest: bytes) -> None:
    assert_only_documented_errors(start + rest)


@examples(200)
@given(
    st.sampled_from(
        [b"eXIf", b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"acTL", b"tRNS", b"PLTE", b"pHYs"]
    ),
    st.binary(max_size=60),
    st.booleans(),
)
def test_png_chunks_of_any_content_raise_only_documented_errors(
    name: bytes, content: bytes, before_pixels: bool
) -> None:
    file = encoded(photo().resize((5, 4)))
    offset = file.index(b"IDAT" if before_pixels else b"IEND") - 4

    assert_only_documented_errors(file[:offset] + chunk(name, content) + file[offset:])


@examples(200)
@given(st.binary(max_size=80))
def test_exif_of_any_content_raises_only_documented_errors(exif: bytes) -> None:
    file = encoded(photo().resize((5, 4)), "JPEG")
    block = b"Exif\x00\x00II*\x00\x08\x00\x00\x00" + exif

    assert_only_documented_errors(file[:2] + segment(0xE1, block) + file[2:])
