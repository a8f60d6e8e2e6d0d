"""Outlines for tools whose polygons have neither holes nor parts, coarser in larger objects."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from samserve.client import Mask, Polygons

Ring = npt.NDArray[np.float64]

# Of the area of the largest part.
_SMALLEST_PART = 0.05
# Of the area inside its outline, the least that a solid mask covers.
_SOLID = 0.8


def outlines(polygons: Polygons, epsilon: float, tolerance: float) -> Iterator[list[list[float]]]:
    """Yield the corners of each part's exterior, the first one again at the end.

    Parts of less than a twentieth of the largest one are left out, and so are holes.  No part of
    the outline is farther from the polygon than *epsilon* times its perimeter, as with
    ``cv2.approxPolyDP``, or *tolerance*, with which the gateway has simplified it already, if that
    is more.  Coordinates are pixels of the image.
    """
    rings = [np.asarray(part.exterior, np.float64) for part in polygons.parts]
    smallest = _SMALLEST_PART * max((_area(ring) for ring in rings), default=0.0)
    for ring in rings:
        if _area(ring) < smallest:
            continue
        coarser = epsilon * _perimeter(ring) - tolerance
        kept = simplified(ring, coarser) if coarser > 0 else ring
        corners = np.round(kept, 2).tolist()
        yield [*corners, corners[0]]


def is_solid(mask: Mask) -> bool:
    """Return whether a mask, in the format of polygons, is about what its outline encloses.

    That of a background is not: without its holes, it would cover the objects too.
    """
    parts = () if mask.polygons is None else mask.polygons.parts
    enclosed = sum(_area(np.asarray(part.exterior, np.float64)) for part in parts)
    return mask.area >= _SOLID * enclosed


def simplified(ring: Ring, tolerance: float) -> Ring:
    """Return the corners of a closed line that Douglas and Peucker's algorithm keeps.

    *ring* is float64 ``[n, 2]``, and so is the result, with three corners or more.
    """
    if len(ring) <= 3:
        return ring
    first = 0
    second = int(np.argmax(np.sum((ring - ring[first]) ** 2, axis=1)))
    closed = np.vstack([ring, ring[:1]])
    keep = np.zeros(len(closed), bool)
    keep[[first, second, len(ring)]] = True
    pending = [(first, second), (second, len(ring))]
    while pending:
        start, end = pending.pop()
        if end - start < 2:
            continue
        distances = _distances(closed[start + 1 : end], closed[start], closed[end])
        farthest = int(np.argmax(distances))
        if distances[farthest] > tolerance:
            middle = start + 1 + farthest
            keep[middle] = True
            pending += [(start, middle), (middle, end)]
    if keep[:-1].sum() < 3:
        # Both halves are straight within the tolerance; a polygon needs a third corner.
        distances = _distances(ring, ring[first], ring[second])
        distances[keep[:-1]] = -1
        keep[int(np.argmax(distances))] = True
    return ring[keep[:-1]]


def _distances(points: Ring, start: Ring, end: Ring) -> npt.NDArray[np.float64]:
    """Return the distances of points to the line from *start* to *end*, float64 ``[n]``."""
    along = end - start
    length = float(np.hypot(*along))
    if length == 0:
        return np.asarray(np.hypot(*(points - start).T))
    offset = points - start
    # To the segment: a corner beyond its ends is as far as from that end.
    at = np.clip(offset @ along / length**2, 0, 1)
    return np.asarray(np.hypot(*(offset - at[:, None] * along).T))


def _area(ring: Ring) -> float:
    x, y = ring.T
    return abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))) / 2


def _perimeter(ring: Ring) -> float:
    return float(np.hypot(*(ring - np.roll(ring, 1, axis=0)).T).sum())
