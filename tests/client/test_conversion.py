"""Images that the server does not decode are converted to PNG before they are sent."""

from __future__ import annotations

import io
import logging
import os
import struct
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from samserve import images as server
from samserve.client import (
    Client,
    ImageTooLarge,
    ImageUnreadable,
    InvalidArgument,
    Prompt,
)
from samserve.client.conversion import to_png
from samserve.client.images import load, read
from samserve.types import EncodedImage, Orientation

from tests import sample_images
from tests.support.examples import examples

LIMITS = server.ImageLimits(max_pixels=1 << 20, max_side=1 << 12)
PIXELS = sample_images.noise(20, 30)
GREY16 = np.random.default_rng(1).integers(0, 1 << 16, (20, 30), dtype=np.uint16)
TAG = 0x0112


def encoded(pixels: np.ndarray | Image.Image, kind: str, **options: Any) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(data: bytes, orientation: Orientation = Orientation.EXIF) -> np.ndarray:
    """The pixels that the server computes from a file that the client has loaded."""
    return server.decode(EncodedImage(load(data).data, orientation), LIMITS)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_formats_of_the_server_are_sent_byte_for_byte(tmp_path: Path, kind: str) -> None:
    data = encoded(PIXELS, kind)
    (tmp_path / "image").write_bytes(data)

    for image in (data, bytearray(data), memoryview(data), tmp_path / "image"):
        assert (load(image).data, load(image).converted_from) == (data, "")


@pytest.mark.parametrize("kind", ["TIFF", "BMP", "PPM", "TGA", "JPEG2000", "PCX", "QOI", "SGI"])
def test_lossless_formats_keep_every_pixel(kind: str) -> None:
    data = encoded(PIXELS, kind)

    assert load(data).converted_from == kind
    assert np.array_equal(decoded(data), PIXELS)


def test_avif_is_converted_to_the_pixels_of_pillow() -> None:
    data = encoded(PIXELS, "AVIF")

    with Image.open(io.BytesIO(data)) as opened:
        assert np.array_equal(decoded(data), np.asarray(opened.convert("RGB")))


@pytest.mark.parametrize("kind", ["GIF", "TIFF"])
def test_the_first_of_several_images_is_taken(kind: str) -> None:
    first, *others = [Image.new("RGB", (30, 20), colour) for colour in ("red", "lime", "blue")]
    data = encoded(first, kind, save_all=True, append_images=others)

    assert np.array_equal(decoded(data), np.full((20, 30, 3), (255, 0, 0)))


def test_the_largest_image_of_an_icon_is_taken() -> None:
    data = encoded(Image.new("RGBA", (48, 48), "red"), "ICO", sizes=[(16, 16), (48, 48)])

    assert decoded(data).shape == (48, 48, 3)


@pytest.mark.parametrize("order", ["<", ">"])
def test_grey_of_16_bits_is_scaled_as_in_a_png(order: str) -> None:
    expected = server.decode(EncodedImage(encoded(GREY16, "PNG")), LIMITS)
    tiff = tiff_file(GREY16.astype(f"{order}u2"), order)
    pgm = b"P5 30 20 65535\n" + GREY16.astype(">u2").tobytes()

    assert np.array_equal(expected[..., 0], np.round(GREY16 / 257))
    assert np.array_equal(decoded(tiff), expected)
    assert np.array_equal(decoded(pgm), expected)


def test_of_colours_of_16_bits_the_high_byte_is_kept() -> None:
    pixels = np.random.default_rng(2).integers(0, 1 << 16, (20, 30, 3), dtype=np.uint16)

    assert np.array_equal(decoded(tiff_file(pixels, "<")), pixels >> 8)


def tiff_file(pixels: np.ndarray, order: str) -> bytes:
    """A plain TIFF file of 16-bit samples, which Pillow does not write for colours."""
    height, width, *more = pixels.shape
    samples = more[0] if more else 1
    entries = [
        *((256, width), (257, height), (258, 16), (259, 1), (262, 2 if samples == 3 else 1)),
        *((273, 8), (277, samples), (278, height), (279, pixels.nbytes)),
    ]
    directory = struct.pack(f"{order}H", len(entries))
    for tag, value in entries:
        directory += struct.pack(f"{order}HHII", tag, 4, 1, value)
    header = b"II*\0" if order == "<" else b"MM\0*"
    data = pixels.tobytes()
    return header + struct.pack(f"{order}I", 8 + len(data)) + data + directory + bytes(4)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_modes_become_what_the_server_makes_of_them(mode: str) -> None:
    image = Image.fromarray(PIXELS).convert(mode)
    data = encoded(image, "TIFF")
    rgba = np.asarray(image.convert("RGBA")).astype(float)
    on_white = rgba[..., :3] * rgba[..., 3:] / 255 + 255 - rgba[..., 3:]

    assert np.abs(decoded(data) - on_white).max() <= 1


@pytest.mark.parametrize("mode", ["L", "P"])
def test_the_transparent_colour_of_a_gif_becomes_white(mode: str) -> None:
    image = Image.new(mode, (30, 20))
    image.putpixel((4, 5), 7)
    if mode == "P":
        image.putpalette([10, 20, 30] * 256)
    found = decoded(encoded(image, "GIF", transparency=0))

    assert (found[0, 0] == 255).all()
    assert (found[5, 4] < 255).all()


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
@pytest.mark.parametrize("number", range(1, 9))
def test_the_orientation_has_the_same_effect_as_in_a_png(number: int, compression: str) -> None:
    exif = Image.Exif()
    exif[TAG] = number
    tiff = encoded(PIXELS, "TIFF", exif=exif, compression=compression)
    png = encoded(PIXELS, "PNG", exif=exif)

    for orientation in Orientation:
        expected = server.decode(EncodedImage(png, orientation), LIMITS)
        assert np.array_equal(decoded(tiff, orientation), expected)


def test_metadata_other_than_the_orientation_is_not_sent() -> None:
    data = encoded(PIXELS, "TIFF", icc_profile=b"profile-of-this-test" * 20, dpi=(300, 300))

    with Image.open(io.BytesIO(load(data).data)) as opened:
        assert set(opened.info) <= {"exif"}


UNREADABLE = {
    "empty": (b"", "is empty: expected JPEG, PNG, WebP"),
    "text": (b"no image", "is not an image: expected JPEG, PNG, WebP, or another format"),
    "PDF": (b"%PDF-1.4\n", "is not an image"),
    "EPS": (b"%!PS-Adobe-3.0 EPSF\n%%BoundingBox: 0 0 9 9\n", "is an EPS file: save it as PNG"),
    "HEIC": (b"\0\0\0\x18ftypheic" + bytes(40), "is a HEIF file that Pillow cannot read"),
    "truncated": (encoded(PIXELS, "BMP")[:-99], "is a BMP file that Pillow cannot read"),
    "floats": (encoded(GREY16.astype(np.float32), "TIFF"), "has 32-bit floats: scale them to"),
    "large values": (
        encoded(GREY16.astype(np.int32) * 9, "TIFF"),
        r"has values from \d+ to \d+: scale them to 0..65535 first",
    ),
    "negative values": (encoded(GREY16.astype(np.int32) - 40_000, "TIFF"), "has values from -"),
    "no decoder": (b"\x89HDF\r\n\x1a\n" + bytes(50), "is a HDF5 file that Pillow cannot read"),
}


def heic(pixels: np.ndarray, **options: Any) -> bytes:
    file = pillow_heif.from_bytes("RGB", pixels.shape[1::-1], pixels.tobytes())
    buffer = io.BytesIO()
    file.save(buffer, **options)
    return buffer.getvalue()


def test_heic_is_converted_if_its_package_is_installed() -> None:
    data = heic(PIXELS, quality=-1, chroma=444, matrix_coefficients=0)

    assert load(data).converted_from == "HEIF"
    assert (decoded(data) == PIXELS).all()


def test_without_its_package_the_error_for_heic_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    monkeypatch.setattr(Image, "ID", [each for each in Image.ID if each != "HEIF"])

    with pytest.raises(ImageUnreadable, match="pip install pillow-heif"):
        load(heic(PIXELS))


@pytest.mark.parametrize("case", UNREADABLE)
def test_an_unreadable_image_is_named_with_the_reason(tmp_path: Path, case: str) -> None:
    data, text = UNREADABLE[case]
    path = tmp_path / "image.xyz"
    path.write_bytes(data)

    with pytest.raises(ImageUnreadable, match=f"^the file: {text}"):
        load(data)
    with pytest.raises(ImageUnreadable, match=text) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert caught.value.reason == "IMAGE_UNREADABLE"
    assert caught.value.field_violations[0].field == "image.encoded"


@pytest.mark.parametrize("length", range(17))
def test_short_files_are_no_images(length: int) -> None:
    with pytest.raises(ImageUnreadable):
        load(b"hi\n of any length, "[:length])


FILES = [
    encoded(PIXELS, kind)
    for kind in ("TIFF", "BMP", "GIF", "AVIF", "ICO", "PPM", "TGA", "JPEG2000", "PCX", "QOI", "DDS")
]


# Pillow warns about odd metadata.
@pytest.mark.filterwarnings("ignore")
@examples(150)
@given(st.sampled_from(FILES), st.integers(0, 2000), st.binary(max_size=8), st.integers(0, 3000))
def test_corrupt_files_are_converted_or_rejected(
    data: bytes, at: int, change: bytes, length: int
) -> None:
    corrupt = (data[:at] + change + data[at + len(change) :])[:length]

    try:
        file = load(corrupt)
    except (ImageTooLarge, ImageUnreadable):
        return
    if file.converted_from:
        limits = server.ImageLimits(max_pixels=1 << 40, max_side=1 << 31)
        server.decode(EncodedImage(file.data), limits)


def test_a_decompression_bomb_is_rejected_before_it_is_decoded() -> None:
    # 40 000 x 40 000 pixels of which the file has none: decoding would fail with another error.
    header = b"BM" + struct.pack("<IHHI", 54, 0, 0, 54)
    header += struct.pack("<IiiHHIIiiII", 40, 40_000, 40_000, 1, 24, 0, 0, 0, 0, 0, 0)

    with pytest.raises(ImageTooLarge, match=r"has 1600000000 pixels, the limit .* is") as caught:
        load(header)

    assert caught.value.metadata == {
        "limit": str(Image.MAX_IMAGE_PIXELS), "actual": "1600000000"
    }  # fmt: skip
    assert caught.value.reason == "IMAGE_TOO_LARGE"


def test_files_over_the_size_of_a_message_are_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("samserve.client.images.MAX_MESSAGE_BYTES", 2 << 20)
    monkeypatch.setattr("samserve.client.conversion.MAX_MESSAGE_BYTES", 1000)
    path = tmp_path / "large.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(2 << 20))

    with pytest.raises(ImageTooLarge, match=r"large.png: is larger than 2 MiB$"):
        load(path)
    with pytest.raises(ImageTooLarge, match="as PNG"):
        load(encoded(PIXELS, "BMP"))


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    for data in (encoded(PIXELS, "PNG"), encoded(PIXELS, "TIFF")):
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        writer = threading.Thread(target=pipe.write_bytes, args=(data,))
        writer.start()
        file = load(pipe)
        writer.join()
        pipe.unlink()

        assert np.array_equal(server.decode(EncodedImage(file.data), LIMITS), PIXELS)


async def test_calls_convert_and_report_the_format(
    client: Client, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "photo.tif"
    path.write_bytes(encoded(PIXELS, "TIFF"))
    caplog.set_level(logging.INFO, logger="samserve.client")

    embedding = await client.embed(path)
    by_bytes = await client.embed(path.read_bytes())
    prediction = await client.predict(path, [Prompt(points=[(9, 9)])])
    again = await client.predict(embedding, [Prompt(points=[(9, 9)])])
    found = await client.automask_all(path, points_per_side=1)
    plain = await client.embed(encoded(PIXELS, "PNG"))

    assert embedding.id == by_bytes.id == prediction.embedding.id == found.summary.embedding.id
    assert (embedding.image_size, embedding.converted_from) == ((20, 30), "TIFF")
    assert prediction.embedding.converted_from == found.summary.embedding.converted_from == "TIFF"
    assert (again.embedding.converted_from, plain.converted_from) == ("TIFF", "")
    assert [record.getMessage() for record in caplog.records] == [
        f"converted {path} from TIFF to PNG",
        "converted the file from TIFF to PNG",
        *[f"converted {path} from TIFF to PNG"] * 2,
    ]


async def test_errors_of_the_server_about_images_have_the_same_classes(client: Client) -> None:
    with pytest.raises(ImageUnreadable) as caught:
        await client.embed(encoded(PIXELS, "PNG")[:80])

    assert isinstance(caught.value, InvalidArgument)
    assert len(caught.value.request_id) == 32


def test_a_large_converted_file_is_requested_by_the_digest_of_its_png() -> None:
    upload = read(encoded(sample_images.noise(400, 400), "BMP"))

    assert upload.digest is not None
    assert upload.converted_from == "BMP"
    assert upload.message.encoded.startswith(b"\x89PNG")


def test_a_frame_that_is_larger_than_its_gif_is_too_large() -> None:
    file = io.BytesIO()
    Image.new("P", (8, 8)).save(file, "GIF")
    data = bytearray(file.getvalue())
    # Width and height of the first frame, behind its separator and its position.
    frame = data.rindex(b"\x2c\0\0\0\0") + 5
    data[frame : frame + 4] = b"\xff" * 4

    with pytest.raises(ImageTooLarge):
        to_png(io.BytesIO(data), "bomb.gif")
