"""Known objects in large images, by the command line and the default model."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen
from typing import Any

import numpy as np
import pyogrio
import pytest
import shapely
from rasterio.transform import Affine
from samserve.core import intervals
from samserve.core.run_lengths import IntArray
from samserve.types import CocoRle, Size

from tests.annotate.tiles.files import write_tiff
from tests.annotate.tiles.scene import Scene
from tests.cli.conftest import server_process

TRANSFORM = Affine(0.5, 0, 500_000, 0, -0.5, 5_300_000)
SEAMS = [(2000, 1000), (1000, 2000), (2000, 2000), (2000, 3100), (3000, 2000)]
"""Centres of objects over the seams and the corner of four tiles of 2112 pixels."""
AUTOMASK = ("--pred-iou-thresh", "0.8", "--min-mask-region-area", "3000")
CLIENT_BYTES = 1 << 30
# The last line is the peak of the memory of the process, in KiB.  That of `getrusage` would be at
# least the memory of the process that has started this one.
RUN = """
import re, sys
from samserve.cli.main import main
code = main(sys.argv[1:])
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1], file=sys.stderr)
sys.exit(code)
"""


@contextmanager
def server() -> Iterator[str]:
    """Serve the default model in a process of its own; yield the address."""
    with server_process("--set", "engine.kind=onnx") as served:
        yield served.address


def annotate(address: str, image: Path, out: Path, *options: str) -> int:
    """Run the command; return the peak of its memory in bytes."""
    arguments = ["annotate", str(image), "--out", str(out), "--server", address, *options]
    process = Popen([sys.executable, "-c", RUN, *arguments, *AUTOMASK], stderr=-1, text=True)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return int(errors.splitlines()[-1]) << 10


def ious(scene: Scene, record: dict[str, Any]) -> list[float]:
    """Return the IoU of each object with the mask that matches it best."""
    size = Size(record["image"]["height"], record["image"]["width"])
    assert size == scene.size
    masks = [
        intervals.from_rle(CocoRle(size, each["segmentation"]["counts"]))
        for each in record["annotations"]
    ]
    boxes = np.array([intervals.extent(mask, size.height) for mask in masks])
    return [best_iou(each.pixels(size), each.extent, masks, boxes) for each in scene.objects]


def best_iou(
    truth: IntArray, extent: tuple[int, ...], masks: Sequence[IntArray], boxes: Any
) -> float:
    left, top, right, bottom = extent
    near = (boxes[:, 0] < right) & (boxes[:, 2] > left)
    near &= (boxes[:, 1] < bottom) & (boxes[:, 3] > top)
    found = []
    for index in np.flatnonzero(near):
        both = intervals.intersection(truth, masks[index])
        either = intervals.area(truth) + intervals.area(masks[index]) - both
        found.append(both / either)
    return max(found, default=0.0)


def check(scene: Scene, out: Path, peak: int) -> None:
    (record,) = [json.loads(path.read_bytes()) for path in out.glob("records/*.json")]
    matched = ious(scene, record)
    print(f"{np.mean(np.array(matched) >= 0.9):.1%} of {len(matched)}; peak {peak >> 20} MiB")
    assert np.mean(np.array(matched) >= 0.9) >= 0.95, sorted(matched)[: len(matched) // 10]
    assert peak < CLIENT_BYTES
    (path,) = out.glob("geojson/*.geojson")
    _, _, geometries, _ = pyogrio.raw.read(path)
    polygons = shapely.from_wkb(geometries)
    assert len(polygons) == len(record["annotations"])
    for each, iou in zip(scene.objects[:20], matched, strict=False):
        # By hand, not by the library that has written the transform.
        truth = shapely.Polygon(each.outline * (0.5, -0.5) + (500_000, 5_300_000))
        both = shapely.area(shapely.intersection(polygons, truth))
        either = shapely.area(polygons) + truth.area - both
        assert abs((both / either).max() - iou) < 0.02


@pytest.mark.slow
def test_objects_over_seams_are_found_as_one(tmp_path: Path) -> None:
    scene = Scene.of(4000, 16, 3, centres=SEAMS, sides=(350, 620))
    image = tmp_path / "image.tif"
    write_tiff(image, scene, crs="EPSG:32633", transform=TRANSFORM)

    with server() as address:
        options = ("--tile", "2112", "--overlap", "192", "--points-per-side", "12")
        peak = annotate(address, image, tmp_path / "out", *options)

    check(scene, tmp_path / "out", peak)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_400_objects_in_an_image_of_400_megapixels_are_found(tmp_path: Path) -> None:
    scene = Scene.of(20_000, 400, 20)
    image = tmp_path / "image.tif"
    write_tiff(image, scene, crs="EPSG:32633", transform=TRANSFORM)

    with server() as address:
        options = ("--tile", "2048", "--overlap", "248", "--points-per-side", "16")
        peak = annotate(address, image, tmp_path / "out", *options)

    check(scene, tmp_path / "out", peak)
