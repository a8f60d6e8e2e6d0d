"""Folders of images of many kinds, made from the photographs of scikit-image."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

_EXIF_ORIENTATION = 0x0112


def write_mixed(folder: Path, count: int, longest: int = 1200) -> list[str]:
    """Write *count* images into subfolders; return their names, ordered.

    Sizes, photographs, formats, colour modes and orientations differ.  The same arguments give the
    same files.
    """
    random = np.random.default_rng(0)
    names = []
    for number in range(count):
        suffix, encode = _KINDS[number % len(_KINDS)]
        pixels = _part(random, longest)
        name = f"set {number % 3}/{'ü' * (number % 2)}photo {number:04}{suffix}"
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(pixels, number))
        names.append(name)
    return sorted(names)


def _part(random: np.random.Generator, longest: int) -> Image.Image:
    """Return a random part of a photograph, in a random size."""
    photograph = _photographs()[random.integers(len(_photographs()))]
    width, height = photograph.size
    part = [int(side * random.uniform(0.5, 1.0)) for side in (width, height)]
    left, top = (
        int(random.integers(0, side - used + 1))
        for side, used in zip((width, height), part, strict=True)
    )
    scale = random.uniform(0.25, 1.0) * longest / max(part)
    size = tuple(max(int(side * scale), 48) for side in part)
    box = (left, top, left + part[0], top + part[1])
    return photograph.resize((size[0], size[1]), Image.Resampling.BICUBIC, box=box)


@functools.cache
def _photographs() -> tuple[Image.Image, ...]:
    coins = np.repeat(skimage.data.coins()[..., None], 3, axis=2)
    pixels = (coins, skimage.data.coffee(), skimage.data.astronaut(), skimage.data.chelsea())
    return tuple(Image.fromarray(each) for each in pixels)


def _saved(kind: str, mode: str = "RGB", **options: object) -> Callable[[Image.Image, int], bytes]:
    def encode(image: Image.Image, number: int) -> bytes:
        return _bytes(image.convert(mode), kind, **options)

    return encode


def _bytes(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _turned(image: Image.Image, number: int) -> bytes:
    exif = Image.Exif()
    exif[_EXIF_ORIENTATION] = 1 + number % 8
    return _bytes(image, "JPEG", exif=exif)


def _grey16(kind: str) -> Callable[[Image.Image, int], bytes]:
    def encode(image: Image.Image, number: int) -> bytes:
        values = np.asarray(image.convert("L")).astype(np.uint16) * 257
        return _bytes(Image.fromarray(values), kind)

    return encode


_KINDS: tuple[tuple[str, Callable[[Image.Image, int], bytes]], ...] = (
    (".jpg", _saved("JPEG", quality=90)),
    (".png", _saved("PNG", compress_level=1)),
    (".webp", _saved("WEBP", quality=80, method=0)),
    (".tif", _saved("TIFF")),
    (".JPG", _turned),
    (".png", _grey16("PNG")),
    (".jpeg", _saved("JPEG", "L")),
    (".tiff", _grey16("TIFF")),
    (".jpg", _saved("JPEG", "CMYK")),
    (".png", _saved("PNG", "RGBA", compress_level=1)),
    (".bmp", _saved("BMP")),
    (".gif", _saved("GIF", "P")),
)
