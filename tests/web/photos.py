"""Images for the page: files with known content."""

from __future__ import annotations

import zipfile
from functools import cache
from io import BytesIO

import numpy as np
import numpy.typing as npt
import skimage.data
import skimage.filters
import skimage.measure
from PIL import Image, ImageOps

from tests.examples.programs import ROOT

MARK = (255, 0, 255)
"""A colour that the photographs do not contain."""
MARK_SIDE = 4


SAMPLE_SIZES = {"coins": (384, 303), "coffee": (600, 400)}
"""Width and height."""


@cache
def sample(name: str) -> bytes:
    """Return the file of a sample of the page."""
    folders = (ROOT / "web" / "src" / "samples", ROOT / "service/samserve/export/samples")
    return next(
        path.read_bytes() for path in (each / f"{name}.jpg" for each in folders) if path.exists()
    )


def size_of(file: bytes) -> tuple[int, int]:
    """Return the width and height of an image file, after its orientation is applied."""
    with Image.open(BytesIO(file)) as image:
        return ImageOps.exif_transpose(image).size


@cache
def coin_masks() -> list[npt.NDArray[np.bool_]]:
    """Return the pixels of coins that are separate from others, by their brightness; ``[h, w]``."""
    pixels = skimage.filters.gaussian(skimage.data.coins(), 1.5)
    # Locally, since the light falls from one side.
    bright = pixels > skimage.filters.threshold_local(pixels, 151, offset=-0.06)
    labels = skimage.measure.label(bright)
    found = skimage.measure.regionprops(labels)
    return [
        labels == each.label
        for each in found
        if each.area > 900 and each.solidity > 0.94 and each.eccentricity < 0.6
    ]


def centre_of(mask: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Return the centre of a mask of one part, in pixels."""
    (found,) = skimage.measure.regionprops(mask.astype(int))
    y, x = found.centroid
    return x + 0.5, y + 0.5


def marked(marks: list[tuple[int, int]], width: int = 600, height: int = 400) -> bytes:
    """Return a grey image with small squares around pixels ``(x, y)``, in the colour `MARK`."""
    pixels = np.full((height, width, 3), 90, np.uint8)
    half = MARK_SIDE // 2
    for x, y in marks:
        pixels[y - half : y + half, x - half : x + half] = MARK
    return png(pixels)


@cache
def large(width: int = 4000, height: int = 3000) -> bytes:
    """Return a JPEG file of 12 megapixels: photographs side by side, with the noise of a camera."""
    tiles = [skimage.data.coffee(), skimage.data.astronaut(), skimage.data.chelsea()]
    side = height // 3
    rows = []
    for row in range(3):
        shifted = tiles[row:] + tiles[:row]
        scaled = [
            np.asarray(Image.fromarray(tile).resize((width // 4, side), Image.Resampling.BICUBIC))
            for tile in (*shifted, shifted[0])
        ]
        rows.append(np.concatenate(scaled, axis=1))
    pixels = np.concatenate(rows)
    noise = np.random.default_rng(0).normal(0, 4, pixels.shape)
    noisy = np.clip(pixels + noise, 0, 255).astype(np.uint8)
    return jpeg(noisy)


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Encode pixels without loss."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def mask_of(file: bytes) -> npt.NDArray[np.bool_]:
    """Read a PNG file of a mask, which must be 255 inside and 0 outside; ``[h, w]``."""
    with Image.open(BytesIO(file)) as image:
        assert image.mode == "L"
        pixels = np.asarray(image)
    assert set(np.unique(pixels)) <= {0, 255}
    return pixels == 255


def masks_of_archive(file: bytes) -> list[npt.NDArray[np.bool_]]:
    """Read a ZIP archive of masks, in its order."""
    with zipfile.ZipFile(BytesIO(file)) as archive:
        assert archive.testzip() is None
        return [mask_of(archive.read(name)) for name in archive.namelist()]


def jpeg(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Encode pixels as a camera does."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def intersection_over_union(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> float:
    """Compare two masks ``[h, w]``: 1.0 for equal ones."""
    return float((a & b).sum() / max(1, (a | b).sum()))
