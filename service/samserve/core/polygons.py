"""Polygons around masks: the exact outline, simplified.

The outline passes halfway between the centres of neighbouring pixels of which one is in the mask
(marching squares), so the pixels whose centres are inside it are those of the mask.  Pixels that
touch at a corner belong to one part.  Only tiles of the image that the outline passes through are
searched, so memory and time depend on its length; GEOS joins the pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from contourpy import LineType, contour_generator

from samserve.core import intervals, scanlines
from samserve.core.scanlines import IntArray
from samserve.types import Array, BoolArray, FloatArray, Polygon, PolygonOptions, Polygons, Size

_TILE = 128
"""Side of a tile in pixels; each shares a row and a column with its neighbours."""
_MAX_ATTEMPTS = 4
"""Tolerances that are tried, each a quarter of the one before, until polygons are valid."""
_MAX_WORK = 1 << 28
"""Rings, times their corners, up to which outlines are simplified: GEOS compares every ring with
every other, about 0.7 s for so many.  Noise and fine grids have more."""
_MAX_CORNERS = 1 << 20
"""Corners of all rings up to which outlines are simplified."""

_X, _Y = np.meshgrid(np.arange(_TILE + 1.0), np.arange(_TILE + 1.0))
_Geometries = npt.NDArray[np.object_]


def outline(
    mask: BoolArray, runs: IntArray, box: tuple[int, int, int, int], options: PolygonOptions
) -> Polygons:
    """Return polygons around a mask, bool ``[h, w]``, with their IoU.

    *runs* are its run lengths as COCO's, *box* its extreme pixels, XYXY.  Exteriors run clockwise
    as displayed, holes counterclockwise.  A polygon never crosses itself or another one.
    """
    size = Size(*mask.shape)
    if len(runs) == 1:
        return Polygons(size, (), 1.0)
    x_min, y_min, x_max, y_max = box
    # With background around it, so that the outline is closed at the border of the image.
    framed = np.pad(mask[y_min : y_max + 1, x_min : x_max + 1], 1)
    source = _Source(
        size=size,
        origin=(x_min - 1, y_min - 1),
        rows=framed.shape[0],
        band=lambda top: framed[top : top + _TILE + 1],
        inside=lambda row, column: mask[row, column],
    )
    polygons = _outline(source, options)
    return Polygons(size, polygons, _iou(polygons, runs, size))


def outline_of_intervals(
    pixels: IntArray, size: Size, options: PolygonOptions
) -> tuple[Polygon, ...]:
    """Return the polygons of `outline` around a mask of any size, without an array of the image.

    *pixels* are its intervals, see `intervals`.
    """
    if not len(pixels):
        return ()
    left, top, right, bottom = intervals.extent(pixels, size.height)

    def band(first: int) -> BoolArray:
        start = top - 1 + first
        end = min(start + _TILE + 1, bottom + 1)
        return intervals.dense(pixels, size.height, (left - 1, start, right + 1, end))

    def inside(row: IntArray, column: IntArray) -> BoolArray:
        return intervals.contains(pixels, column * size.height + row)

    return _outline(_Source(size, (left - 1, top - 1), bottom - top + 2, band, inside), options)


@dataclass(frozen=True, slots=True, eq=False)
class _Source:
    """The pixels of a mask, with a frame of background around its box.

    ``origin`` is the first pixel of the frame, x and y; *band* returns the rows of the frame from
    one on, up to `_TILE` + 1 of them; *inside* whether pixels of the image are in the mask.
    """

    size: Size
    origin: tuple[int, int]
    rows: int
    band: Callable[[int], BoolArray]
    inside: Callable[[IntArray, IntArray], BoolArray]


@dataclass(frozen=True, slots=True, eq=False)
class _Parts:
    """Rings of parts of a mask: ``part`` int64 ``[n]``, ordered, exteriors before their holes.

    ``pixels`` int64 ``[n]`` are the numbers of pixels that the rings enclose.
    """

    rings: _Geometries
    part: IntArray
    pixels: IntArray

    def exteriors(self) -> BoolArray:
        """Return which rings are exteriors, bool ``[n]``."""
        exterior: BoolArray = np.diff(self.part, prepend=-1) > 0
        return exterior

    def areas(self) -> IntArray:
        """Return the pixels of each part, without those in its holes."""
        signed = np.where(self.exteriors(), self.pixels, -self.pixels)
        return np.add.reduceat(signed, np.flatnonzero(self.exteriors()))


def _outline(source: _Source, options: PolygonOptions) -> tuple[Polygon, ...]:
    parts = _simplified(_large(_parts(source), options.min_area), options.tolerance)
    return tuple(_polygon(part) for part in shapely.orient_polygons(parts))


def _parts(source: _Source) -> _Parts:
    """Return the exact outline of a mask."""
    points, line = _lines(source)
    # From centres of the first framed pixel to corners of the image.
    points += (source.origin[0] + 0.5, source.origin[1] + 0.5)
    pieces = shapely.multilinestrings(shapely.linestrings(points, indices=line))
    # Not `polygonize`, which holds Python's lock.
    merged = shapely.get_parts(shapely.line_merge(pieces))
    points, ring = shapely.get_coordinates(merged, return_index=True)
    pixels, part, hole = _nesting(points, ring, source)
    order = np.lexsort((hole, part))
    rings: _Geometries = shapely.linearrings(points, indices=ring)
    return _Parts(rings[order], part[order], pixels[order])


def _lines(source: _Source) -> tuple[Array, IntArray]:
    """Return the outline in pieces: float64 ``[n, 2]`` and int64 ``[n]``, points and their lines.

    The origin is the centre of the first pixel.
    """
    points: list[Array] = []
    lengths: list[Array] = []
    for top, left, tile in _mixed_tiles(source):
        height, width = tile.shape
        # The background as 1, as the saddle between two pixels that touch belongs to the lower.
        generator = contour_generator(
            _X[:height, :width],
            _Y[:height, :width],
            (~tile).astype(np.float64),
            line_type=LineType.ChunkCombinedOffset,
        )
        # Of the only chunk; its type depends on the line type.
        found: Any = [values[0] for values in generator.lines(0.5)]
        corners, offsets = found
        if corners is not None:
            points.append(corners + np.array([left, top]))
            lengths.append(np.diff(offsets.astype(np.int64)))
    every = np.concatenate(lengths)
    return np.concatenate(points), np.repeat(np.arange(every.size), every)


def _mixed_tiles(source: _Source) -> Iterator[tuple[int, int, BoolArray]]:
    """Yield the first row and column, and the pixels, of tiles with pixels of both kinds."""
    for top in range(0, source.rows - 1, _TILE):
        band = source.band(top)
        some, every = np.asarray(band.any(axis=0)), np.asarray(band.all(axis=0))
        for left in range(0, band.shape[1] - 1, _TILE):
            columns = slice(left, left + _TILE + 1)
            if some[columns].any() and not every[columns].all():
                yield top, left, band[:, columns]


def _nesting(
    points: Array, ring: IntArray, source: _Source
) -> tuple[IntArray, IntArray, BoolArray]:
    """Return the pixels inside of each exact ring, the number of its part, and which are holes.

    *points* are float64 ``[n, 2]``, *ring* their rings ``[n]``; the last of each repeats its first.
    Parts are numbered by their highest point.
    """
    starts = np.flatnonzero(np.diff(ring, prepend=-1))
    # In halves of pixels.  A ring crosses the centres of a column between two of its rows.
    x, y = (points * 2).astype(np.int64).T
    direction = np.sign(np.diff(x, append=0)) * (x % 2)
    direction[np.append(starts[1:], len(ring)) - 1] = 0
    pixels = np.abs(np.add.reduceat(direction * y, starts)) // 2
    # The highest crossing of each ring, and all of them, column by column.
    span = 2 * source.size.width + 1
    top = np.minimum.reduceat(y * span + x, starts)
    column, row = top % span // 2, top // span // 2
    crossing = np.flatnonzero(direction)
    stride = source.size.height + 1
    places = x[crossing] * stride + y[crossing] // 2
    order = np.argsort(places)
    # A hole is in the part of the ring above it, which is its exterior, or another hole of it.
    hole = ~source.inside(row, column)
    above = np.searchsorted(places[order], (2 * column + 1) * stride + row) - 1
    part = np.where(hole, ring[crossing][order][above], np.arange(len(starts)))
    while hole[part].any():
        part = part[part]
    return pixels, top[part], hole


def _large(parts: _Parts, min_area: int) -> _Geometries:
    """Return polygons without parts and holes of fewer pixels than *min_area*, largest first."""
    areas = parts.areas()
    exterior = parts.exteriors()
    number = np.cumsum(exterior) - 1
    size = np.where(exterior, areas[number], parts.pixels)
    kept = (size >= min_area) & (areas[number] >= min_area)
    if not kept.any():
        return np.empty(0, dtype=np.object_)
    rank = np.empty(len(areas), dtype=np.int64)
    rank[np.argsort(-areas, kind="stable")] = np.arange(len(areas))
    # Holes stay behind their exterior; numbers without gaps.
    order = np.argsort(rank[number[kept]], kind="stable")
    _, indices = np.unique(rank[number[kept]][order], return_inverse=True)
    polygons: _Geometries = shapely.polygons(parts.rings[kept][order], indices=indices)
    return polygons


def _simplified(polygons: _Geometries, tolerance: float) -> _Geometries:
    """Simplify polygons together, so that they do not cross each other.

    Too many of them are returned as they are, without the corners that are on one line with the
    next ones: a mask of noise must not occupy a thread for minutes.
    """
    exact, part = shapely.get_rings(polygons, return_index=True)
    corners = int(shapely.get_num_coordinates(exact).sum())
    if corners > _MAX_CORNERS or len(exact) * corners > _MAX_WORK:
        found: _Geometries = shapely.polygons(_straightened(exact), indices=part)
        return found
    together = shapely.multipolygons(polygons)
    for attempt in range(_MAX_ATTEMPTS):
        # The last is exact: only corners between two that are on one line with it are removed.
        distance = tolerance / 4**attempt if attempt < _MAX_ATTEMPTS - 1 else 0.0
        simplified = shapely.simplify(together, distance, preserve_topology=True)
        rings = shapely.get_rings(shapely.get_parts(simplified))
        if len(rings) != len(exact):
            continue
        for index, pair in enumerate(zip(exact, rings, strict=True)):
            rings[index] = _within(*pair, distance)
        parts: _Geometries = shapely.polygons(rings, indices=part)
        if shapely.is_valid(shapely.multipolygons(parts)):
            return parts
    return polygons


def _straightened(rings: _Geometries) -> _Geometries:
    """Return rings without the corners between two that are on one line with them."""
    points, ring = shapely.get_coordinates(rings, return_index=True)
    # The last point of a ring repeats its first.
    last = np.diff(ring, append=-1) != 0
    points, ring = points[~last], ring[~last]
    first = np.flatnonzero(np.diff(ring, prepend=-1))
    final = np.append(first[1:], len(ring)) - 1
    after = np.roll(points, -1, axis=0) - points
    after[final] = points[first] - points[final]
    before = np.roll(after, 1, axis=0)
    before[first] = after[final]
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    straight: _Geometries = shapely.linearrings(points[turns], indices=ring[turns])
    return straight


def _within(
    exact: shapely.LinearRing, simplified: shapely.LinearRing, tolerance: float
) -> shapely.LinearRing:
    """Return a simplified ring, with the first corner of the exact one again where needed.

    GEOS removes that corner if it is near the rest of the ring, but not the corners next to it.
    """
    every, kept = (shapely.get_coordinates(ring)[:-1] for ring in (exact, simplified))
    # Numbers that order points, exact for halves of pixels.
    places, found = (corners @ (1 << 20, 1.0) for corners in (every, kept))
    if (found == places[0]).any():
        return simplified
    order = np.argsort(places)
    index = order[np.searchsorted(places[order], found)]
    before, after = int(index.argmax()), int(index.argmin())
    skipped = np.concatenate([every[index[before] + 1 :], every[: index[after]]])
    line = shapely.LineString([kept[before], kept[after]])
    if shapely.distance(shapely.points(skipped), line).max() <= tolerance:
        return simplified
    return shapely.LinearRing(np.insert(kept, before + 1, every[0], axis=0))


def _polygon(geometry: shapely.Polygon) -> Polygon:
    exterior, *holes = shapely.get_rings(geometry)
    return Polygon(_corners(exterior), tuple(_corners(hole) for hole in holes))


def _corners(ring: shapely.LinearRing) -> FloatArray:
    """Return the corners without the last, which repeats the first."""
    corners: FloatArray = shapely.get_coordinates(ring)[:-1].astype(np.float32)
    return corners


def _iou(polygons: tuple[Polygon, ...], runs: IntArray, size: Size) -> float:
    rings = [ring for each in polygons for ring in (each.exterior, *each.holes)]
    inside = scanlines.runs_inside(rings, size)
    both = scanlines.intersection(runs, inside)
    either = int(runs[1::2].sum()) + int(inside[1::2].sum()) - both
    return both / either
