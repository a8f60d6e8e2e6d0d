"""GeoJSON files, read back by another library, against arithmetic of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from rasterio.crs import CRS
from rasterio.transform import Affine
from samserve.annotate.outputs import Output
from samserve.annotate.source import Source
from samserve.annotate.tiles import gdal, geojson
from samserve.annotate.tiles.masks import from_json
from samserve.annotate.tiles.merge import Merged
from samserve.annotate.tiles.plan import Grid, Tile, Tiling
from samserve.annotate.tiles.reader import GeoReference
from samserve.core import intervals, polygons, rle
from samserve.types import BoolArray, PolygonOptions, Size

SIZE = Size(300, 400)
GRID = Grid(SIZE, Tiling(512, 64))
TURNED = Affine(0.4, -0.3, 400_000.5, -0.3, -0.4, 5_600_000.25)


def shape() -> BoolArray:
    """Return a rectangle with a hole, and a part of its own."""
    mask = np.zeros((SIZE.height, SIZE.width), dtype=np.bool_)
    mask[50:200, 100:260] = True
    mask[90:130, 150:200] = False
    mask[250:270, 20:60] = True
    return mask


def merged(mask: BoolArray) -> Merged:
    (tile,) = GRID.tiles()
    value = {"predicted_iou": 0.91, "stability_score": 0.97, "point": [1.0, 1.0]}
    return Merged(tuple(from_json(GRID, tile, [{"counts": rle.encode(mask).counts, **value}])))


def reference_of(path: Path, **profile: Any) -> GeoReference | None:
    settings = {"driver": "GTiff", "width": SIZE.width, "height": SIZE.height, "count": 1}
    with rasterio.open(path, "w", dtype="uint8", **settings, **profile) as file:
        file.write(np.ones((1, SIZE.height, SIZE.width), np.uint8))
    source = Source(str(path))
    with gdal.opened(source, source.find().images[0]) as reader:
        return reader.reference


def written(folder: Path, reference: GeoReference | None) -> tuple[Any, dict[str, Any], Path]:
    """Write the shape; return its geometry and the metadata, as GDAL reads them, and the file."""
    geojson.write(Output(str(folder)), "sub/a.tif", GRID, [merged(shape())], reference)
    path = folder / "geojson" / "sub" / "a.tif.geojson"
    metadata, _, geometries, _ = pyogrio.raw.read(path)
    (geometry,) = shapely.from_wkb(geometries)
    assert shapely.is_valid(geometry)
    return geometry, metadata, path


@pytest.mark.parametrize(
    ("crs", "name"),
    [
        ("EPSG:32633", "urn:ogc:def:crs:EPSG::32633"),
        ("EPSG:4326", "urn:ogc:def:crs:OGC:1.3:CRS84"),
    ],
)
def test_coordinates_are_in_the_reference_system_of_the_image(
    tmp_path: Path, crs: str, name: str
) -> None:
    transform = Affine(0.25, 0, 13.5, 0, -0.5, 47.25)

    geometry, metadata, path = written(
        tmp_path, reference_of(tmp_path / "a.tif", crs=crs, transform=transform)
    )

    assert CRS.from_user_input(metadata["crs"]).to_epsg() in (int(crs[5:]), None)
    content = json.loads(path.read_text())
    assert content["crs"] == {"type": "name", "properties": {"name": name}}
    # By hand: columns 20 to 260, rows 50 to 270.
    bounds = (13.5 + 20 * 0.25, 47.25 - 270 * 0.5, 13.5 + 260 * 0.25, 47.25 - 50 * 0.5)
    assert np.allclose(geometry.bounds, bounds, atol=0.26)
    (feature,) = content["features"]
    assert feature["properties"] == {
        "area": int(shape().sum()),
        "predicted_iou": 0.91,
        "stability_score": 0.97,
        "tiles": 1,
    }


def test_turned_images_have_their_coordinates_and_holes(tmp_path: Path) -> None:
    reference = reference_of(tmp_path / "a.tif", crs="EPSG:25832", transform=TURNED)

    geometry, _, _ = written(tmp_path, reference)

    # Every centre of a pixel is inside exactly if the pixel is in the mask.
    rows, columns = np.mgrid[0 : SIZE.height : 7, 0 : SIZE.width : 7]
    x, y = columns + 0.5, rows + 0.5
    east = 0.4 * x - 0.3 * y + 400_000.5
    north = -0.3 * x - 0.4 * y + 5_600_000.25
    assert (shapely.contains_xy(geometry, east, north) == shape()[rows, columns]).all()
    assert sum(len(part.interiors) for part in geometry.geoms) == 1
    assert abs(geometry.area / (shape().sum() * 0.25) - 1) < 0.01


def test_a_system_without_a_code_is_written_as_wkt(tmp_path: Path) -> None:
    local = "+proj=tmerc +lat_0=12.3 +lon_0=45.6 +k=0.9999 +x_0=1000 +y_0=2000 +ellps=bessel"
    reference = reference_of(tmp_path / "a.tif", crs=local, transform=TURNED)

    _, metadata, path = written(tmp_path, reference)

    name = json.loads(path.read_text())["crs"]["properties"]["name"]
    assert name.startswith("PROJCS[")
    assert "45.6" in metadata["crs"]


def test_without_a_reference_coordinates_are_pixels(tmp_path: Path) -> None:
    geometry, _, path = written(tmp_path, None)

    assert "crs" not in json.loads(path.read_text())
    assert np.allclose(geometry.bounds, (20, 50, 260, 270), atol=0.6)


def test_outlines_without_an_array_are_those_of_the_array() -> None:
    random = np.random.default_rng(0)
    for number in range(30):
        mask = np.zeros((200, 300), dtype=np.bool_)
        for _ in range(12):
            top, left = random.integers(0, 200), random.integers(0, 300)
            bottom, right = top + random.integers(1, 90), left + random.integers(1, 90)
            mask[top:bottom, left:right] = random.random() < 0.7
        size = Size(200, 300)
        found = intervals.from_mask(mask)
        left, top, right, bottom = intervals.extent(found, size.height)
        options = PolygonOptions(tolerance=float(number % 3), min_area=number)

        outlined = polygons.outline_of_intervals(found, size, options)

        box = (left, top, right - 1, bottom - 1)
        expected = polygons.outline(mask, intervals.to_runs(found, size), box, options)
        assert len(outlined) == len(expected.polygons)
        for one, other in zip(outlined, expected.polygons, strict=True):
            assert (one.exterior == other.exterior).all()
            assert len(one.holes) == len(other.holes)


def test_the_outline_of_a_mask_of_a_gigapixel_needs_no_array_of_the_image() -> None:
    size = Size(46_340, 46_340)
    frame = np.ones((1500, 1500), dtype=np.bool_)
    frame[200:1300, 200:1300] = False
    tile = Tile(0, 0, (44_000, 44_000, 45_500, 45_500))
    placed = intervals.shifted(intervals.from_mask(frame), tile.size, *tile.window[:2], size)

    (polygon,) = polygons.outline_of_intervals(placed, size, PolygonOptions())

    assert np.allclose(polygon.exterior.min(axis=0), 44_000, atol=0.6)
    assert np.allclose(polygon.exterior.max(axis=0), 45_500, atol=0.6)
    assert len(polygon.holes) == 1
