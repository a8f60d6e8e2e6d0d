"""Pixels of annotations: run lengths measured, polygons filled, outlines of run lengths.

A pixel is inside a polygon if its centre is, even-odd for the rings of a part (`core.scanlines`),
and in an annotation if it is in any part.  Run lengths are exact; so are polygons of tolerance 0,
whose corners are halfway between the centres of pixels: `to_rle` of `to_polygons` is the same mask.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from samserve.core import polygons, rle, run_lengths, scanlines
from samserve.core.run_lengths import IntArray
from samserve.datasets.types import Polygons, Ring, Segmentation, Xywh
from samserve.errors import InvalidRequest
from samserve.types import Array, BoolArray, CocoRle, PolygonOptions, Size

MAX_PIXELS = 1 << 29
"""Pixels of the box of a mask up to which its outline is found: a byte each."""
MAX_CROSSINGS = 1 << 26
"""Columns that the lines of polygons cross, all together: 100 bytes each while they are filled."""

_FIELD = "segmentation"
EMPTY = hashlib.blake2b(digest_size=16).digest()
"""The `fingerprint` of no pixels."""


@dataclass(frozen=True, slots=True)
class Extent:
    """Number of pixels of a mask, and its extreme pixels, XYXY; of an empty one all 0."""

    area: int
    x_min: int = 0
    y_min: int = 0
    x_max: int = 0
    y_max: int = 0

    def coco_box(self) -> Xywh:
        """Return the box as pycocotools does: from the outer edge to the outer edge."""
        if not self.area:
            return (0.0, 0.0, 0.0, 0.0)
        width, height = self.x_max - self.x_min + 1, self.y_max - self.y_min + 1
        return (float(self.x_min), float(self.y_min), float(width), float(height))

    def sa1b_box(self) -> Xywh:
        """Return the box as ``segment-anything`` does: a pixel narrower and lower than COCO's."""
        left, top, width, height = self.coco_box()
        return (left, top, max(width - 1, 0.0), max(height - 1, 0.0))


def runs_of(mask: CocoRle) -> IntArray:
    """Return the run lengths, int64, background first.

    Raises ``ValueError`` if they do not fit the size of the mask.
    """
    return np.array(run_lengths.uncompressed(mask), dtype=np.int64)


def extent(runs: IntArray, size: Size) -> Extent:
    """Return area and extreme pixels of run lengths that sum to *size*."""
    ends = np.cumsum(runs)
    starts = ends - runs
    first, last = starts[1::2], ends[1::2] - 1
    filled = last >= first
    first, last = first[filled], last[filled]
    if not first.size:
        return Extent(0)
    height = size.height
    area, x_min, x_max = int((last - first + 1).sum()), int(first[0]), int(last[-1])
    # One that continues in the next column has the last row of the one, the first of the other.
    continued = (first // height != last // height).any()
    y_min = 0 if continued else int((first % height).min())
    y_max = height - 1 if continued else int((last % height).max())
    return Extent(area, x_min // height, y_min, x_max // height, y_max)


def extent_of(segmentation: Segmentation, size: Size) -> Extent:
    """Return area and extreme pixels.  Raises `InvalidRequest` as `to_rle` does."""
    return extent(_runs(segmentation, size), size)


def to_rle(segmentation: Segmentation, size: Size) -> CocoRle:
    """Return the pixels as run lengths of an image of *size*.

    Raises `InvalidRequest` for run lengths of another size, and for polygons over `MAX_CROSSINGS`.
    """
    if isinstance(segmentation, CocoRle):
        _check_size(segmentation, size)
        return segmentation
    return rle.from_runs(size, _runs(segmentation, size))


def to_polygons(segmentation: Segmentation, size: Size, tolerance: float = 0.0) -> Polygons:
    """Return the outline, no farther than *tolerance* pixels from that of the pixels.

    Polygons stay as they are.  An empty mask has no parts.  Raises `InvalidRequest` for run lengths
    that do not fit *size*, and for a mask whose box has more than `MAX_PIXELS`.
    """
    if isinstance(segmentation, Polygons):
        return segmentation
    runs = _runs(segmentation, size)
    box = extent(runs, size)
    if not box.area:
        return Polygons(())
    part, left, top = _crop(runs, size, box)
    height, width = part.shape
    corners = (0, 0, width - 1, height - 1)
    options = PolygonOptions(tolerance=tolerance)
    found = polygons.outline(part, run_lengths.runs(part), corners, options)
    return Polygons(
        tuple(
            tuple(_moved(ring, left, top) for ring in (each.exterior, *each.holes))
            for each in found.polygons
        )
    )


def sampled(segmentation: Segmentation, size: Size, step: int) -> BoolArray:
    """Return every *step*-th pixel of every *step*-th column: bool ``[h / step, w / step]``.

    Takes memory for the result and the runs, not for the image.  Raises as `to_rle`.
    """
    borders = np.cumsum(_runs(segmentation, size))
    columns, rows = np.arange(0, size.width, step), np.arange(0, size.height, step)
    places = columns[:, None] * size.height + rows[None]
    inside: BoolArray = np.searchsorted(borders, places, side="right") % 2 == 1
    return inside.T


def fingerprint(segmentation: Segmentation, size: Size) -> bytes:
    """Return a hash of the pixels, the same for equal ones.  Raises as `to_rle` does."""
    runs = _runs(segmentation, size)
    borders = np.cumsum(runs)
    # Without runs of no pixels.
    places, counts = np.unique(borders[borders < size.pixels], return_counts=True)
    changes = places[counts % 2 == 1].astype("<i8")
    return hashlib.blake2b(changes.tobytes(), digest_size=16).digest()


@contextmanager
def named(file_name: str) -> Iterator[None]:
    """Name the image in the errors of this module that the block raises."""
    try:
        yield
    except InvalidRequest as error:
        field, text = error.violations[0]
        if field != _FIELD:
            raise
        raise InvalidRequest(f"{file_name}: {field}", text) from error


def rings_box(outline: Polygons) -> Xywh | None:
    """Return the box around the corners of polygons; None if there are none."""
    corners = [corner for part in outline.parts for ring in part for corner in ring]
    if not corners:
        return None
    (left, top), (right, bottom) = np.min(corners, axis=0), np.max(corners, axis=0)
    return (float(left), float(top), float(right - left), float(bottom - top))


def _runs(segmentation: Segmentation, size: Size) -> IntArray:
    if isinstance(segmentation, CocoRle):
        _check_size(segmentation, size)
        try:
            return runs_of(segmentation)
        except ValueError as error:
            raise InvalidRequest(_FIELD, str(error)) from error
    return _filled(segmentation, size)


def _check_size(mask: CocoRle, image: Size) -> None:
    if mask.size != image:
        sizes = [f"{each.width}x{each.height}" for each in (mask.size, image)]
        raise InvalidRequest(_FIELD, f"is of {sizes[0]} pixels, the image has {sizes[1]}")


def _filled(segmentation: Polygons, size: Size) -> IntArray:
    """Return the run lengths of the pixels inside any part."""
    parts = [[np.asarray(ring, np.float64) for ring in part if ring] for part in segmentation.parts]
    crossings = sum(_crossings(ring, size) for part in parts for ring in part)
    if crossings > MAX_CROSSINGS:
        text = f"has polygons that cross {crossings:.0f} columns in all, at most {MAX_CROSSINGS}"
        raise InvalidRequest(_FIELD, text)
    found = [scanlines.runs_inside(part, size) for part in parts]
    return found[0] if len(found) == 1 else _union(found, size)


def _crossings(ring: Array, size: Size) -> float:
    """Return the number of columns of the image that the lines of a ring cross, to a pixel each."""
    x = ring[:, 0].clip(0, size.width)
    return float(np.abs(x - np.roll(x, -1)).sum()) + len(x)


def _union(parts: list[IntArray], size: Size) -> IntArray:
    """Return the run lengths of the pixels in any of several masks."""
    starts, ends = [], []
    for runs in parts:
        borders = np.cumsum(runs)
        starts.append(borders[:-1:2])
        ends.append(borders[1::2])
    if not starts:
        return np.array([size.pixels], dtype=np.int64)
    places = np.concatenate([*starts, *ends])
    steps = np.ones(places.size, dtype=np.int64)
    steps[sum(each.size for each in starts) :] = -1
    order = np.argsort(places, kind="stable")
    places, depth = places[order], np.cumsum(steps[order])
    # After the last step at a place.
    last = np.flatnonzero(np.diff(places, append=-1))
    inside = depth[last] > 0
    changes = places[last][np.diff(inside, prepend=False) != 0]
    union: IntArray = np.diff(changes[changes < size.pixels], prepend=0, append=size.pixels)
    return union


def _crop(runs: IntArray, size: Size, box: Extent) -> tuple[BoolArray, int, int]:
    """Return the mask inside its box, and the box's first column and row."""
    columns = box.x_max - box.x_min + 1
    # Of whole columns, as run lengths are ordered by them.
    if columns * size.height > MAX_PIXELS:
        text = (
            f"has {columns * size.height} pixels in its columns, at most {MAX_PIXELS} for polygons"
        )
        raise InvalidRequest(_FIELD, text)
    borders = np.clip(np.cumsum(runs), box.x_min * size.height, (box.x_max + 1) * size.height)
    lengths = np.diff(borders, prepend=box.x_min * size.height)
    mask = np.repeat(np.arange(lengths.size) % 2 == 1, lengths)
    pixels = mask.reshape(columns, size.height).T
    return np.ascontiguousarray(pixels[box.y_min : box.y_max + 1]), box.x_min, box.y_min


def _moved(ring: Array, left: int, top: int) -> Ring:
    corners = ring.astype(np.float64) + np.array([left, top])
    return tuple((float(x), float(y)) for x, y in corners.tolist())
