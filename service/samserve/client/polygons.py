"""Polygons around masks as plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from samserve.core import scanlines
from samserve.types import Size

Ring = npt.NDArray[np.float32]
"""The corners of a closed line, float32 ``[n, 2]``: x and y in pixels of the image.

The last corner is connected to the first.
"""


@dataclass(frozen=True, slots=True, eq=False)
class PolygonOptions:
    """Parameters of the mask format ``polygons``.

    ``tolerance`` is the maximum distance in pixels between the outline of the mask and its polygon:
    from 0, every corner of the outline, to 1000; None is the server's default, 1.  Parts and holes
    of fewer than ``min_area`` pixels are left out.
    """

    tolerance: float | None = None
    min_area: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Polygon:
    """One part of a mask: its outline, and those of its holes."""

    exterior: Ring
    holes: tuple[Ring, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Polygons:
    """The simplified outline of a mask: one polygon for each separate part, the largest first.

    ``iou`` is the intersection over union of `array` with the mask.  `shapely.shape` accepts this
    object, and ``shapely.MultiPolygon`` its `shells_and_holes`.
    """

    size: tuple[int, int]
    parts: tuple[Polygon, ...] = field(repr=False)
    iou: float

    def decode(self) -> npt.NDArray[np.bool_]:
        """Return the pixels whose centres are inside the polygons, bool ``[h, w]``."""
        size = Size(*self.size)
        rings = [ring for part in self.parts for ring in (part.exterior, *part.holes)]
        return scanlines.pixels(scanlines.runs_inside(rings, size), size)

    def shells_and_holes(self) -> list[tuple[list[Corner], list[list[Corner]]]]:
        """Return the exterior and the holes of each part as lists of ``(x, y)``."""
        return [
            (_corners(part.exterior), [_corners(hole) for hole in part.holes])
            for part in self.parts
        ]

    @property
    def geojson(self) -> dict[str, Any]:
        """A ``MultiPolygon`` of GeoJSON in pixels of the image, ready for JSON."""
        return {
            "type": "MultiPolygon",
            "coordinates": [
                [_closed(ring) for ring in (part.exterior, *part.holes)] for part in self.parts
            ],
        }

    __geo_interface__ = geojson


Corner = tuple[float, float]


def _corners(ring: Ring) -> list[Corner]:
    return [(x, y) for x, y in ring.tolist()]


def _closed(ring: Ring) -> list[list[float]]:
    """Return the corners with the first one repeated at the end, as GeoJSON requires."""
    corners: list[list[float]] = ring.tolist()
    return [*corners, *corners[:1]]
