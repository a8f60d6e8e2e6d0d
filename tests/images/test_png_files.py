"""PNG files of every format: decoded pixels against the samples that were encoded."""

from __future__ import annotations

import struct
import zlib
from itertools import product

import cv2
import numpy as np
import pytest
from samserve import images
from samserve.errors import ImageUnreadable
from samserve.types import EncodedImage

from tests.images import files
from tests.images.files import LIMITS, blend_with_white
from tests.support import png
from tests.support.cases import check_all
from tests.support.png import GREY, PALETTE, RGB, Png, chunk

HEIGHT, WIDTH = 11, 14
ROTATED = b"MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"
"""An EXIF block with a rotation by 90 degrees."""


def decoded(file: bytes) -> np.ndarray:
    rgb = files.decoded(file)
    assert images.decode_mask(EncodedImage(file), LIMITS).shape == rgb.shape[:2]
    return rgb


def samples_of(depth: int, colour: int, *, values: int = 0) -> np.ndarray:
    """Return random samples, of only *values* different values if that is not 0."""
    shape = (HEIGHT, WIDTH, png.CHANNELS[colour])
    high = 1 << depth
    drawn = np.random.default_rng(depth * 8 + colour).integers(0, values or high, shape)
    return drawn * (high - 1) // (values - 1) if values else drawn


def palette_of(depth: int) -> np.ndarray:
    return np.random.default_rng(depth).integers(0, 256, (1 << depth, 3), dtype=np.uint8)


def to_8_bits(samples: np.ndarray, depth: int, colour: int) -> np.ndarray:
    """Convert samples to 8 bits by the documented rules."""
    if depth == 16:
        return (samples + 128) // 257 if colour == GREY else samples >> 8
    return samples * 255 // ((1 << depth) - 1)


def expected_pixels(samples: np.ndarray, depth: int, colour: int) -> np.ndarray:
    """Return the expected pixels of a file without a transparent colour, as floats."""
    if colour == PALETTE:
        return palette_of(depth)[samples[..., 0]].astype(float)
    values = to_8_bits(samples, depth, colour)
    count = png.CHANNELS[colour]
    planes = values[..., : count - 1 + count % 2]
    colours = np.repeat(planes, 3, axis=2) if planes.shape[2] == 1 else planes
    return blend_with_white(colours, values[..., -1]) if count % 2 == 0 else colours.astype(float)


def png_of(depth: int, colour: int, samples: np.ndarray, *, interlaced: bool = False) -> Png:
    palette = (chunk(b"PLTE", palette_of(depth).tobytes()),) if colour == PALETTE else ()
    return Png(samples, depth, colour, interlaced, palette)


def with_chunks_before(source: Png, *chunks: bytes) -> bytes:
    return Png(
        source.samples, source.depth, source.colour, source.interlaced, (*source.before, *chunks)
    ).file()


def decoded_by_opencv(file: bytes) -> np.ndarray:
    """Decode by OpenCV's libpng and blend with white."""
    result = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED)
    assert result is not None
    deep = result.astype(np.uint32)
    if result.dtype == np.uint16:
        deep = (deep + 128) // 257 if result.ndim == 2 else deep >> 8
    if result.ndim == 2:
        return np.repeat(deep[..., None], 3, axis=2).astype(float)
    colours = deep[..., 2::-1]
    return (
        blend_with_white(colours, deep[..., 3]) if result.shape[2] == 4 else colours.astype(float)
    )


@pytest.mark.parametrize("interlaced", [False, True], ids=["plain", "interlaced"])
def test_every_format_decodes_to_its_samples(*, interlaced: bool) -> None:
    def check(case: tuple[int, int]) -> None:
        depth, colour = case
        samples = samples_of(depth, colour)
        file = png_of(depth, colour, samples, interlaced=interlaced).file()

        result = decoded(file)

        assert np.abs(result - expected_pixels(samples, depth, colour)).max() <= 1
        assert np.abs(result - decoded_by_opencv(file)).max() <= 1

    check_all(
        check, {f"{depth} bits, type {colour}": (depth, colour) for depth, colour in png.FORMATS}
    )


WITH_TRANSPARENT_COLOUR = [
    (depth, colour) for depth, colour in png.FORMATS if colour in (GREY, RGB)
]


@pytest.mark.parametrize("interlaced", [False, True], ids=["plain", "interlaced"])
def test_transparent_colour_is_compared_at_the_bit_depth_of_the_file(*, interlaced: bool) -> None:
    def check(case: tuple[int, int]) -> None:
        depth, colour = case
        samples = samples_of(depth, colour, values=2 if depth == 1 else 4)
        # Neither 0 nor the maximum, which are the same at every depth.
        middle = (samples > 0).all(axis=2) & (samples < (1 << depth) - 1).all(axis=2)
        key = samples[middle][0] if depth > 1 else samples[0, 0]
        if depth == 16:
            # The same high bytes but another colour.
            samples[3, 6] = key ^ 1
        source = png_of(depth, colour, samples, interlaced=interlaced)
        file = with_chunks_before(source, chunk(b"tRNS", struct.pack(f">{len(key)}H", *key)))
        transparent = (samples == key).all(axis=2)

        result = decoded(file)

        expected = np.where(transparent[..., None], 255, expected_pixels(samples, depth, colour))
        assert transparent.any()
        assert not transparent.all()
        assert np.array_equal(result, expected)
        if colour == RGB:
            assert np.array_equal(result, decoded_by_opencv(file))
        inside = images.decode_mask(EncodedImage(file), LIMITS)
        assert np.array_equal(inside, samples.any(axis=2) & ~transparent)

    check_all(
        check,
        {
            f"{depth} bits, type {colour}": (depth, colour)
            for depth, colour in WITH_TRANSPARENT_COLOUR
        },
    )


def test_bits_of_the_transparent_colour_above_the_depth_are_ignored() -> None:
    def check(depth: int) -> None:
        samples = samples_of(depth, GREY, values=2)
        file = with_chunks_before(
            png_of(depth, GREY, samples), chunk(b"tRNS", struct.pack(">H", 1 << depth))
        )

        result = decoded(file)

        assert (result == 255).all(axis=2)[samples[..., 0] == 0].all()

    check_all(check, {f"{depth} bits": depth for depth in (1, 2, 4, 8)})


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_alpha_of_a_palette_applies_to_its_entries(depth: int) -> None:
    samples = samples_of(depth, PALETTE)
    alpha = np.random.default_rng(1).integers(0, 256, (1 << depth) - 1, dtype=np.uint8)
    file = with_chunks_before(png_of(depth, PALETTE, samples), chunk(b"tRNS", alpha.tobytes()))
    whole = np.append(alpha, np.uint8(255))[samples[..., 0]]

    result = decoded(file)

    assert (
        np.abs(result - blend_with_white(expected_pixels(samples, depth, PALETTE), whole)).max()
        <= 1
    )
    assert np.abs(result - decoded_by_opencv(file)).max() <= 1


def test_sample_outside_the_palette_is_black() -> None:
    samples = np.arange(4).reshape(1, 4, 1)
    file = Png(samples, 8, PALETTE, before=(chunk(b"PLTE", bytes([9, 8, 7, 6, 5, 4])),)).file()

    assert decoded(file)[0].tolist() == [[9, 8, 7], [6, 5, 4], [0, 0, 0], [0, 0, 0]]


PLAIN = png_of(8, RGB, samples_of(8, RGB))


def test_chunks_that_no_pixel_depends_on_are_ignored() -> None:
    """Viewers ignore such corruption; Pillow would fail or decode other pixels."""
    bomb = b"key\0\0" + zlib.compress(bytes(20_000_000))
    first = tuple(int(value) for value in PLAIN.samples[0, 0])
    cases = {
        "text of a wrong checksum": chunk(b"tEXt", b"key\0text", checksum=7),
        "a comment named interlace": chunk(b"tEXt", b"interlace\0yes"),
        "a comment named transparency": chunk(b"tEXt", b"transparency\0yes"),
        "a comment named bbox": chunk(b"tEXt", b"bbox\0yes"),
        "a comment that looks like EXIF": chunk(b"tEXt", b"exif\0" + ROTATED),
        "EXIF of a wrong checksum": chunk(b"eXIf", ROTATED, checksum=7),
        "animation of a wrong checksum": chunk(b"acTL", struct.pack(">II", 3, 0), checksum=7),
        "gamma of a wrong length": chunk(b"gAMA", b"1"),
        "text that inflates": chunk(b"zTXt", bomb),
        "profile that inflates": chunk(b"iCCP", bomb),
        "many profiles": chunk(b"iCCP", b"n\0\0" + zlib.compress(bytes(99))) * 50,
        "a corrupt suggested palette": chunk(b"PLTE", b"1234", checksum=7),
    }

    def check(source: bytes) -> None:
        assert np.array_equal(decoded(with_chunks_before(PLAIN, source)), PLAIN.samples)

    check_all(check, cases)
    after = chunk(b"tRNS", struct.pack(">3H", *first)) + chunk(b"tEXt", b"a\0b", checksum=1)
    with_chunks_after = Png(PLAIN.samples, 8, RGB, after=(after,)).file()
    assert np.array_equal(decoded(with_chunks_after), PLAIN.samples)
    assert np.array_equal(decoded(PLAIN.file()[: -len(png.END)]), PLAIN.samples)


def test_orientation_is_read_before_and_after_the_pixels() -> None:
    block = chunk(b"eXIf", ROTATED)
    expected = np.rot90(PLAIN.samples, -1)

    assert np.array_equal(decoded(with_chunks_before(PLAIN, block)), expected)
    assert np.array_equal(decoded(Png(PLAIN.samples, 8, RGB, after=(block,)).file()), expected)


def split(data: bytes, at: int) -> tuple[bytes, bytes]:
    content = data[8:-4]
    return chunk(b"IDAT", content[:at]), chunk(b"IDAT", content[at:])


def test_error_names_the_corruption_that_affects_pixels() -> None:
    head, pixels = PLAIN.header(), PLAIN.pixels()
    one, two = split(pixels, 30)
    indexed = Png(samples_of(2, PALETTE), 2, PALETTE)
    palette = chunk(b"PLTE", palette_of(2).tobytes())
    cases = {
        "chunk IHDR is wrong": [head[:-1] + b"?", pixels],
        "chunk IDAT is wrong": [head, pixels[:-1] + b"?"],
        "chunk tRNS is wrong": [head, chunk(b"tRNS", bytes(6), checksum=1), pixels],
        "chunk PLTE is wrong": [indexed.header(), palette[:-1] + b"?", indexed.pixels()],
        "transparent colour of 8 bytes": [head, chunk(b"tRNS", bytes(8)), pixels],
        "without its palette": [indexed.header(), indexed.pixels()],
        "palette of 4 bytes": [indexed.header(), chunk(b"PLTE", b"1234"), indexed.pixels()],
        "palette of 771 bytes": [indexed.header(), chunk(b"PLTE", bytes(771)), indexed.pixels()],
        "two headers": [head, head[8:], pixels],
        "not begin with its header": [png.SIGNATURE, chunk(b"tEXt", b"a\0b"), head[8:], pixels],
        "other chunks between": [head, one, chunk(b"tEXt", b"a\0b"), two],
        "chunk CgBI, which PNG does not define": [
            png.SIGNATURE,
            chunk(b"CgBI", b""),
            head[8:],
            pixels,
        ],
        "without a valid name": [head, chunk(b"a1 x", b""), pixels],
        "without pixel data": [head],
        "without a valid size": [png.SIGNATURE, chunk(b"IHDR", bytes(8) + b"\x08\2\0\0\0"), pixels],
        "unknown format": [png.SIGNATURE, chunk(b"IHDR", b"\0\0\0\1\0\0\0\1\3\2\0\0\0"), pixels],
    }

    def check(case: tuple[str, list[bytes]]) -> None:
        text, parts = case
        with pytest.raises(ImageUnreadable, match=text):
            images.decode(EncodedImage(b"".join((*parts, png.END))), LIMITS)

    check_all(check, {text: (text, parts) for text, parts in cases.items()})


def test_truncated_pixel_data_is_invalid() -> None:
    """A file truncated to any length decodes to all pixels or none."""
    source = png_of(8, RGB, samples_of(8, RGB), interlaced=True)
    one, two = split(source.pixels(), 40)
    file = source.header() + one + two + png.END

    def check(length: int) -> None:
        try:
            result = decoded(file[:length])
        except ImageUnreadable:
            return
        assert np.array_equal(result, source.samples)

    check_all(check, {f"{length} bytes": length for length in range(len(file))})
    with pytest.raises(ImageUnreadable):
        decoded(source.header() + one + png.END)


def test_foreground_of_a_mask_is_neither_black_nor_transparent_at_full_depth() -> None:
    def check(case: tuple[tuple[int, int], bool]) -> None:
        (depth, colour), interlaced = case
        # Few nonzero samples, all small: rounded to 8 bits they would be 0.
        shape = (HEIGHT, WIDTH, png.CHANNELS[colour])
        samples = (np.random.default_rng(depth).random(shape) < 0.3).astype(np.int64)
        file = Png(samples, depth, colour, interlaced).file()
        count = png.CHANNELS[colour]
        expected = samples[..., : count - 1 + count % 2].any(axis=2)
        if count % 2 == 0:
            expected &= samples[..., -1] != 0

        assert np.array_equal(images.decode_mask(EncodedImage(file), LIMITS), expected)

    formats = [each for each in png.FORMATS if each[1] != PALETTE]
    check_all(check, {str(each): each for each in product(formats, (False, True))})


def test_foreground_of_a_palette_mask_depends_on_its_colours() -> None:
    samples = np.arange(4).reshape(2, 2, 1)
    palette = chunk(b"PLTE", bytes([0, 0, 0, 0, 0, 1, 255, 0, 0, 0, 255, 0]))
    file = Png(samples, 2, PALETTE, before=(palette, chunk(b"tRNS", b"\xff\xff\x00"))).file()

    result = images.decode_mask(EncodedImage(file), LIMITS)

    assert result.tolist() == [[False, True], [False, True]]


def test_orientation_is_applied_to_a_mask() -> None:
    samples = np.zeros((2, 3, 1), np.int64)
    samples[0, 0] = 1
    file = Png(samples, 8, GREY, before=(chunk(b"eXIf", ROTATED),)).file()

    result = images.decode_mask(EncodedImage(file), LIMITS)

    assert np.array_equal(result, np.rot90(samples[..., 0] != 0, -1))
