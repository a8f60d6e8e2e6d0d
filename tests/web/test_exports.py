"""The files that the page exports, read by other programs than the one that wrote them."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import skimage.data
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from samserve.core import mask_formats, run_lengths, scanlines
from samserve.types import BoolArray, MaskFormat, PolygonOptions, Polygons, Size

from tests.examples.programs import run_node

pytestmark = [
    pytest.mark.slow,
    # pycocotools.mask.decode on numpy 2
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

SCRIPT = Path(__file__).with_name("exports.mjs")
IMAGE = 'coins & "more".v2.png'
SVG = "{http://www.w3.org/2000/svg}"


def drawn_masks() -> dict[str, BoolArray]:
    """Masks of one odd size by the names of their objects."""
    coins = skimage.data.coins()
    height, width = coins.shape
    y, x = np.mgrid[:height, :width]
    ring = np.hypot(x - 150, y - 150) < 90
    ring &= np.hypot(x - 140, y - 150) > 30
    pixel, full = np.zeros((2, height, width), dtype=np.bool_)
    pixel[0, width - 1] = True
    full[:] = True
    grid = (x % 6 < 3) ^ (y % 6 < 3)
    noise = np.random.default_rng(0).random((height, width)) < 0.01
    masks = {"coins": coins > 110, "<ring> & hole": ring, "a/b:c": pixel, "CON": full}
    masks |= {"ring": ring, "Ring": grid, "corner ": np.triu(full), "名前": noise}
    return masks


@dataclass(frozen=True)
class Exported:
    folder: Path
    masks: dict[str, BoolArray]
    names: dict[str, str]
    outlines: list[list[dict[str, Any]]]

    def path(self, kind: str) -> Path:
        return self.folder / self.names[kind]

    @property
    def size(self) -> Size:
        return Size(*next(iter(self.masks.values())).shape)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("exports")
    masks = drawn_masks()
    objects = [
        {"name": name, "colour": [255, 7, 80], "counts": run_lengths.encode(mask).counts}
        | {"score": 0.5}
        for name, mask in masks.items()
    ]
    height, width = next(iter(masks.values())).shape
    request = {"image": IMAGE, "size": {"width": width, "height": height}, "objects": objects}
    printed = run_node(SCRIPT, str(folder), text=json.dumps(request))
    return Exported(folder, masks, **json.loads(printed))


def test_pycocotools_reads_the_same_masks(exported: Exported) -> None:
    coco = COCO(str(exported.path("coco")))

    [image] = coco.loadImgs(coco.getImgIds())
    assert image["file_name"] == IMAGE
    assert Size(image["height"], image["width"]) == exported.size
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]], iscrowd=False))
    assert len(annotations) == len(exported.masks)
    for annotation, (name, mask) in zip(annotations, exported.masks.items(), strict=True):
        assert np.array_equal(coco.annToMask(annotation), mask)
        assert annotation["area"] == mask.sum()
        assert annotation["bbox"] == box_around(mask)
        [category] = coco.loadCats(annotation["category_id"])
        assert category["name"] == name.strip()
        assert annotation["score"] == 0.5


def test_coco_results_can_be_evaluated_against_themselves(exported: Exported) -> None:
    truth = COCO(str(exported.path("coco")))
    found = truth.loadRes(list(truth.anns.values()))
    evaluation = COCOeval(truth, found, "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()

    assert evaluation.stats[0] == pytest.approx(1)


def test_png_has_the_pixels_of_the_mask(exported: Exported) -> None:
    first = next(iter(exported.masks.values()))
    with Image.open(exported.path("mask")) as image:
        assert (image.format, image.mode) == ("PNG", "L")
        assert np.array_equal(np.asarray(image), np.where(first, 255, 0))


def test_archive_has_a_png_with_a_safe_name_for_each_object(exported: Exported) -> None:
    with zipfile.ZipFile(exported.path("masks")) as archive:
        assert archive.testzip() is None
        objects = ("coins", "_ring_ _ hole", "a_b_c", "object", "ring", "Ring (2)", "corner")
        expected = [f"coins _ _more_.v2-{name}.png" for name in (*objects, "名前")]
        assert archive.namelist() == expected
        assert archive.infolist()[0].compress_type == zipfile.ZIP_STORED
        for name, mask in zip(expected, exported.masks.values(), strict=True):
            with archive.open(name) as file, Image.open(file) as image:
                assert np.array_equal(np.asarray(image) == 255, mask)


def test_svg_draws_the_masks(exported: Exported) -> None:
    root = ElementTree.parse(exported.path("svg")).getroot()

    height, width = exported.size.height, exported.size.width
    assert root.get("viewBox") == f"0 0 {width} {height}"
    paths = root.findall(f"{SVG}path")
    titles = [path.findtext(f"{SVG}title") for path in paths]
    assert titles == list(exported.masks)
    assert len({path.get("id") for path in paths}) == len(paths)
    for path, mask in zip(paths, exported.masks.values(), strict=True):
        assert path.get("fill") == "#ff0750"
        rings = [ring_of(part) for part in path.get("d", "").strip("MZ").split("ZM")]
        assert iou(filled(rings, exported.size), mask) >= 0.99


def test_exact_outlines_are_those_of_the_api(exported: Exported) -> None:
    for parts, mask in zip(exported.outlines, exported.masks.values(), strict=True):
        encoded = mask_formats.encode(mask, MaskFormat.POLYGONS, PolygonOptions(0.0, 0))
        assert isinstance(encoded, Polygons)
        expected = {
            (from_smallest(each.exterior), frozenset(map(from_smallest, each.holes)))
            for each in encoded.polygons
        }
        found = {
            (from_smallest(part["exterior"]), frozenset(map(from_smallest, part["holes"])))
            for part in parts
        }
        assert found == expected
        assert len(parts) == len(encoded.polygons)


def box_around(mask: BoolArray) -> list[int]:
    """The box of COCO: left, top, width and height."""
    y, x = np.nonzero(mask)
    return [x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1]


def ring_of(path: str) -> np.ndarray:
    """The corners of a part of a path, float32 ``[n, 2]``."""
    return np.array([corner.split() for corner in path.split("L")], dtype=np.float32)


def filled(rings: list[np.ndarray], size: Size) -> BoolArray:
    """The pixels whose centres are inside an odd number of rings."""
    return scanlines.pixels(scanlines.runs_inside(rings, size), size)


def iou(first: BoolArray, second: BoolArray) -> float:
    return float((first & second).sum() / (first | second).sum())


def from_smallest(ring: Any) -> tuple[tuple[float, float], ...]:
    """A ring from its smallest corner on, in its direction."""
    corners = [(float(x), float(y)) for x, y in ring]
    first = corners.index(min(corners))
    return (*corners[first:], *corners[:first])
