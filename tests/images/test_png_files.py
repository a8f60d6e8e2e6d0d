"""PNG files of every format: what they show, by the samples that were written."""

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
from tests.images.files import LIMITS, over_white
from tests.support import png
from tests.support.png import GREY, PALETTE, RGB, Png, chunk
from tests.support.together import check_all

HEIGHT, WIDTH = 11, 14
TURNED = b"MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"
"""An EXIF block that turns by a quarter."""


def decoded(file: bytes) -> np.ndarray:
    rgb = files.decoded(file)
    assert images.decode_mask(EncodedImage(file), LIMITS).shape == rgb.shape[:2]
    return rgb


def samples_of(depth: int, colour: int, *, values: int = 0) -> np.ndarray:
    """Make random samples, of few different *values* if that is given."""
    shape = (HEIGHT, WIDTH, png.CHANNELS[colour])
    high = 1 << depth
    drawn = np.random.default_rng(depth * 8 + colour).integers(0, values or high, shape)
    return drawn * (high - 1) // (values - 1) if values else drawn


def palette_of(depth: int) -> np.ndarray:
    return np.random.default_rng(depth).integers(0, 256, (1 << depth, 3), dtype=np.uint8)


def narrowed(samples: np.ndarray, depth: int, colour: int) -> np.ndarray:
    """Bring samples to 8 bits by the rules that are documented."""
    if depth == 16:
        return (samples + 128) // 257 if colour == GREY else samples >> 8
    return samples * 255 // ((1 << depth) - 1)


def shown(samples: np.ndarray, depth: int, colour: int) -> np.ndarray:
    """Tell what a file without a transparent colour has to show, as numbers."""
    if colour == PALETTE:
        return palette_of(depth)[samples[..., 0]].astype(float)
    narrow = narrowed(samples, depth, colour)
    count = png.CHANNELS[colour]
    planes = narrow[..., : count - 1 + count % 2]
    colours = np.repeat(planes, 3, axis=2) if planes.shape[2] == 1 else planes
    return over_white(colours, narrow[..., -1]) if count % 2 == 0 else colours.astype(float)


def written(depth: int, colour: int, samples: np.ndarray, *, interlaced: bool = False) -> Png:
    palette = (chunk(b"PLTE", palette_of(depth).tobytes()),) if colour == PALETTE else ()
    return Png(samples, depth, colour, interlaced, palette)


def with_before(given: Png, *chunks: bytes) -> bytes:
    return Png(
        given.samples, given.depth, given.colour, given.interlaced, (*given.before, *chunks)
    ).file()


def by_opencv(file: bytes) -> np.ndarray:
    """Decode by libpng, in OpenCV, and lay over white."""
    found = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED)
    assert found is not None
    deep = found.astype(np.uint32)
    if found.dtype == np.uint16:
        deep = (deep + 128) // 257 if found.ndim == 2 else deep >> 8
    if found.ndim == 2:
        return np.repeat(deep[..., None], 3, axis=2).astype(float)
    colours = deep[..., 2::-1]
    return over_white(colours, deep[..., 3]) if found.shape[2] == 4 else colours.astype(float)


@pytest.mark.parametrize("interlaced", [False, True], ids=["plain", "interlaced"])
def test_every_format_shows_its_samples(*, interlaced: bool) -> None:
    def check(case: tuple[int, int]) -> None:
        depth, colour = case
        samples = samples_of(depth, colour)
        file = written(depth, colour, samples, interlaced=interlaced).file()

        found = decoded(file)

        assert np.abs(found - shown(samples, depth, colour)).max() <= 1
        assert np.abs(found - by_opencv(file)).max() <= 1

    check_all(
        check, {f"{depth} bits, type {colour}": (depth, colour) for depth, colour in png.FORMATS}
    )


KEYED = [(depth, colour) for depth, colour in png.FORMATS if colour in (GREY, RGB)]


@pytest.mark.parametrize("interlaced", [False, True], ids=["plain", "interlaced"])
def test_the_transparent_colour_is_compared_in_the_depth_of_the_file(*, interlaced: bool) -> None:
    def check(case: tuple[int, int]) -> None:
        depth, colour = case
        samples = samples_of(depth, colour, values=2 if depth == 1 else 4)
        # Neither 0 nor the highest, which are the same in every depth.
        middle = (samples > 0).all(axis=2) & (samples < (1 << depth) - 1).all(axis=2)
        key = samples[middle][0] if depth > 1 else samples[0, 0]
        if depth == 16:
            # The same high bytes, and another colour.
            samples[3, 6] = key ^ 1
        given = written(depth, colour, samples, interlaced=interlaced)
        file = with_before(given, chunk(b"tRNS", struct.pack(f">{len(key)}H", *key)))
        transparent = (samples == key).all(axis=2)

        found = decoded(file)

        expected = np.where(transparent[..., None], 255, shown(samples, depth, colour))
        assert transparent.any()
        assert not transparent.all()
        assert np.array_equal(found, expected)
        if colour == RGB:
            assert np.array_equal(found, by_opencv(file))
        inside = images.decode_mask(EncodedImage(file), LIMITS)
        assert np.array_equal(inside, samples.any(axis=2) & ~transparent)

    check_all(check, {f"{depth} bits, type {colour}": (depth, colour) for depth, colour in KEYED})


def test_bits_of_the_transparent_colour_above_the_depth_do_not_count() -> None:
    def check(depth: int) -> None:
        samples = samples_of(depth, GREY, values=2)
        file = with_before(
            written(depth, GREY, samples), chunk(b"tRNS", struct.pack(">H", 1 << depth))
        )

        found = decoded(file)

        assert (found == 255).all(axis=2)[samples[..., 0] == 0].all()

    check_all(check, {f"{depth} bits": depth for depth in (1, 2, 4, 8)})


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_alpha_of_a_palette_is_that_of_its_entries(depth: int) -> None:
    samples = samples_of(depth, PALETTE)
    alpha = np.random.default_rng(1).integers(0, 256, (1 << depth) - 1, dtype=np.uint8)
    file = with_before(written(depth, PALETTE, samples), chunk(b"tRNS", alpha.tobytes()))
    whole = np.append(alpha, np.uint8(255))[samples[..., 0]]

    found = decoded(file)

    assert np.abs(found - over_white(shown(samples, depth, PALETTE), whole)).max() <= 1
    assert np.abs(found - by_opencv(file)).max() <= 1


def test_an_entry_that_the_palette_does_not_have_is_black() -> None:
    samples = np.arange(4).reshape(1, 4, 1)
    file = Png(samples, 8, PALETTE, before=(chunk(b"PLTE", bytes([9, 8, 7, 6, 5, 4])),)).file()

    assert decoded(file)[0].tolist() == [[9, 8, 7], [6, 5, 4], [0, 0, 0], [0, 0, 0]]


PLAIN = written(8, RGB, samples_of(8, RGB))


def test_what_no_pixel_depends_on_is_not_read() -> None:
    """Viewers pass over such damage; Pillow would stop at it, or decode other pixels."""
    bomb = b"key\0\0" + zlib.compress(bytes(20_000_000))
    first = tuple(int(value) for value in PLAIN.samples[0, 0])
    cases = {
        "text of a wrong checksum": chunk(b"tEXt", b"key\0text", checksum=7),
        "a comment named interlace": chunk(b"tEXt", b"interlace\0yes"),
        "a comment named transparency": chunk(b"tEXt", b"transparency\0yes"),
        "a comment named bbox": chunk(b"tEXt", b"bbox\0yes"),
        "a comment that looks like EXIF": chunk(b"tEXt", b"exif\0" + TURNED),
        "EXIF of a wrong checksum": chunk(b"eXIf", TURNED, checksum=7),
        "animation of a wrong checksum": chunk(b"acTL", struct.pack(">II", 3, 0), checksum=7),
        "gamma of a wrong length": chunk(b"gAMA", b"1"),
        "text that inflates": chunk(b"zTXt", bomb),
        "profile that inflates": chunk(b"iCCP", bomb),
        "many profiles": chunk(b"iCCP", b"n\0\0" + zlib.compress(bytes(99))) * 50,
        "a suggested palette that is damaged": chunk(b"PLTE", b"1234", checksum=7),
    }

    def check(given: bytes) -> None:
        assert np.array_equal(decoded(with_before(PLAIN, given)), PLAIN.samples)

    check_all(check, cases)
    after = chunk(b"tRNS", struct.pack(">3H", *first)) + chunk(b"tEXt", b"a\0b", checksum=1)
    behind = Png(PLAIN.samples, 8, RGB, after=(after,)).file()
    assert np.array_equal(decoded(behind), PLAIN.samples)
    assert np.array_equal(decoded(PLAIN.file()[: -len(png.END)]), PLAIN.samples)


def test_orientation_is_found_before_and_behind_the_pixels() -> None:
    block = chunk(b"eXIf", TURNED)
    expected = np.rot90(PLAIN.samples, -1)

    assert np.array_equal(decoded(with_before(PLAIN, block)), expected)
    assert np.array_equal(decoded(Png(PLAIN.samples, 8, RGB, after=(block,)).file()), expected)


def split(data: bytes, at: int) -> tuple[bytes, bytes]:
    content = data[8:-4]
    return chunk(b"IDAT", content[:at]), chunk(b"IDAT", content[at:])


def test_damage_that_pixels_depend_on_is_named() -> None:
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
        "no valid name": [head, chunk(b"a1 x", b""), pixels],
        "without pixel data": [head],
        "without a valid size": [png.SIGNATURE, chunk(b"IHDR", bytes(8) + b"\x08\2\0\0\0"), pixels],
        "unknown format": [png.SIGNATURE, chunk(b"IHDR", b"\0\0\0\1\0\0\0\1\3\2\0\0\0"), pixels],
    }

    def check(case: tuple[str, list[bytes]]) -> None:
        text, parts = case
        with pytest.raises(ImageUnreadable, match=text):
            images.decode(EncodedImage(b"".join((*parts, png.END))), LIMITS)

    check_all(check, {text: (text, parts) for text, parts in cases.items()})


def test_pixels_that_are_cut_off_are_refused() -> None:
    """Of whatever length the file is, it shows all pixels or none."""
    given = written(8, RGB, samples_of(8, RGB), interlaced=True)
    one, two = split(given.pixels(), 40)
    file = given.header() + one + two + png.END

    def check(length: int) -> None:
        try:
            found = decoded(file[:length])
        except ImageUnreadable:
            return
        assert np.array_equal(found, given.samples)

    check_all(check, {f"{length} bytes": length for length in range(len(file))})
    with pytest.raises(ImageUnreadable):
        decoded(given.header() + one + png.END)


def test_a_mask_is_what_is_neither_black_nor_transparent_at_full_depth() -> None:
    def check(case: tuple[tuple[int, int], bool]) -> None:
        (depth, colour), interlaced = case
        # Few samples that are not 0, and small ones: rounded to 8 bits they would be.
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


def test_a_mask_of_a_palette_is_by_its_colours() -> None:
    samples = np.arange(4).reshape(2, 2, 1)
    palette = chunk(b"PLTE", bytes([0, 0, 0, 0, 0, 1, 255, 0, 0, 0, 255, 0]))
    file = Png(samples, 2, PALETTE, before=(palette, chunk(b"tRNS", b"\xff\xff\x00"))).file()

    found = images.decode_mask(EncodedImage(file), LIMITS)

    assert found.tolist() == [[False, True], [False, True]]


def test_a_mask_is_turned_as_viewers_show_it() -> None:
    samples = np.zeros((2, 3, 1), np.int64)
    samples[0, 0] = 1
    file = Png(samples, 8, GREY, before=(chunk(b"eXIf", TURNED),)).file()

    found = images.decode_mask(EncodedImage(file), LIMITS)

    assert np.array_equal(found, np.rot90(samples[..., 0] != 0, -1))
