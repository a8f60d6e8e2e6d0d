"""The masks of an image as GeoJSON, one feature for each.

Coordinates are in the reference system of the image, which the member ``crs`` names as GDAL and
QGIS write it; RFC 7946, of 2016, has no such member and permits only WGS 84.  Without a reference
system they are pixels, x right and y down.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from samserve.annotate.outputs import Output
from samserve.annotate.tiles.merge import Merged
from samserve.annotate.tiles.plan import Grid
from samserve.annotate.tiles.reader import GeoReference
from samserve.core import polygons
from samserve.types import Array, Polygon, PolygonOptions

FOLDER = "geojson"
_OPTIONS = PolygonOptions()


def write(
    output: Output,
    name: str,
    grid: Grid,
    found: Sequence[Merged],
    reference: GeoReference | None,
) -> None:
    """Write ``geojson/<name>.geojson`` below an output.  Blocks.  Raises ``OSError``.

    Features are written one after the other: all polygons of a large image would need much memory.
    """
    with output.replacing(f"{FOLDER}/{name}.geojson") as path, Path(path).open("w") as file:
        file.write(_head(name, reference))
        for number, feature in enumerate(_features(grid, found, reference)):
            file.write(",\n" if number else "\n")
            json.dump(feature, file, separators=(",", ":"))
        file.write("\n]}\n")


def _head(name: str, reference: GeoReference | None) -> str:
    members: dict[str, Any] = {"type": "FeatureCollection", "name": name}
    if reference is not None and reference.crs:
        members["crs"] = {"type": "name", "properties": {"name": reference.crs}}
    return json.dumps(members)[:-1] + ', "features": ['


def _features(
    grid: Grid, found: Sequence[Merged], reference: GeoReference | None
) -> Iterator[dict[str, Any]]:
    for number, each in enumerate(found, start=1):
        pixels = each.pixels(grid)
        parts = polygons.outline_of_intervals(pixels, grid.size, _OPTIONS)
        yield {
            "type": "Feature",
            "id": number,
            "properties": {
                "area": int((pixels[:, 1] - pixels[:, 0]).sum()),
                "predicted_iou": round(each.predicted_iou, 4),
                "stability_score": round(each.stability_score, 4),
                "tiles": len(each.pieces),
            },
            "geometry": {
                "type": "MultiPolygon",
                "coordinates": [_rings(part, reference) for part in parts],
            },
        }


def _rings(part: Polygon, reference: GeoReference | None) -> list[list[list[float]]]:
    """Return exterior and holes, closed, in the direction that RFC 7946 wants where x is right."""
    return [_closed(_located(ring, reference)) for ring in (part.exterior, *part.holes)]


def _located(ring: Array, reference: GeoReference | None) -> Array:
    """Return corners ``[n, 2]`` in the reference system."""
    corners = ring.astype(np.float64)
    if reference is None:
        return corners
    a, b, c, d, e, f = reference.transform
    x, y = corners.T
    return np.stack([a * x + b * y + c, d * x + e * y + f], axis=1)


def _closed(corners: Array) -> list[list[float]]:
    found: list[list[float]] = corners.tolist()
    return [*found, found[0]]
