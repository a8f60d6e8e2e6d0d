"""`--mask`: which pixels of a file are inside the mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from samserve.cli.errors import UsageError
from samserve.cli.files import read_mask

INSIDE = np.zeros((48, 64), dtype=bool)
INSIDE[10:30, 10:40] = True


def saved(folder: Path, pixels: np.ndarray, kind: str = "png") -> Path:
    path = folder / f"mask.{kind}"
    Image.fromarray(pixels).save(path, lossless=True)
    return path


def with_alpha(colour: int, alpha: np.ndarray) -> np.ndarray:
    return np.dstack([np.full((*alpha.shape, 3), colour, np.uint8), alpha.astype(np.uint8)])


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_transparent_pixels_are_outside(tmp_path: Path, kind: str) -> None:
    path = saved(tmp_path, with_alpha(255, INSIDE * 255), kind)

    assert np.array_equal(read_mask(path), INSIDE)


@pytest.mark.parametrize(
    "pixels",
    [
        INSIDE.astype(np.uint8),
        INSIDE.astype(np.uint16),
        np.where(INSIDE, 40_000, 0).astype(np.uint16),
        np.dstack([INSIDE * 0, INSIDE * 0, INSIDE * 4]).astype(np.uint8),
        INSIDE,
    ],
    ids=["8 bits", "16 bits, 1", "16 bits", "dark blue", "1 bit"],
)
def test_dark_pixels_that_are_not_black_are_inside(tmp_path: Path, pixels: np.ndarray) -> None:
    assert np.array_equal(read_mask(saved(tmp_path, pixels)), INSIDE)


def test_the_exif_orientation_applies_to_masks(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "mask.png"
    Image.fromarray(INSIDE).save(path, exif=exif)

    assert np.array_equal(read_mask(path), np.rot90(INSIDE, -1))


@pytest.mark.parametrize(
    "pixels",
    [with_alpha(0, INSIDE * 255), with_alpha(255, INSIDE * 0), np.zeros((48, 64), np.uint8)],
    ids=["black with alpha", "transparent", "black"],
)
def test_an_empty_mask_image_is_rejected(tmp_path: Path, pixels: np.ndarray) -> None:
    with pytest.raises(UsageError, match="is empty: all pixels are black"):
        read_mask(saved(tmp_path, pixels))


def test_an_empty_mask_array_is_rejected(tmp_path: Path) -> None:
    np.save(tmp_path / "mask.npy", INSIDE & False)

    with pytest.raises(UsageError, match="is empty"):
        read_mask(tmp_path / "mask.npy")


@pytest.mark.parametrize("kind", ["gif", "bmp", "tiff"])
def test_formats_that_images_must_not_have_are_rejected_for_masks(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / f"mask.{kind}"
    Image.fromarray(INSIDE.astype(np.uint8)).save(path)

    with pytest.raises(UsageError, match=r"--mask .*: is not a JPEG, PNG or WebP file"):
        read_mask(path)
