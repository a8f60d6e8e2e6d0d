"""Data sets for tests: drawn by Hypothesis, and on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from samserve.core import rle
from samserve.datasets.types import Annotation, Category, DataSet, ImageRecord, Origin, Polygons
from samserve.types import BoolArray, Size

CATEGORIES = (
    Category(0, "cat", "animal"),
    Category(3, "Hund", attributes={"keypoints": ["nose", "tail"], "skeleton": [[1, 2]]}),
    Category(-7, "voiture à pédales"),
)
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
ATTRIBUTES = st.dictionaries(
    st.sampled_from(["keypoints", "num_keypoints", "note", "occluded", "Ünïcode", "a b", ""]),
    _VALUES,
    max_size=3,
)
_NUMBERS = st.floats(-1e6, 1e6)
_SCORES = st.none() | st.floats(0, 1)


def masks(size: Size) -> st.SearchStrategy[BoolArray]:
    """Masks of any pixels, also none and all."""
    return arrays.arrays(np.bool_, (size.height, size.width))


@st.composite
def annotations(draw: st.DrawFn, size: Size, number: int) -> Annotation:
    """An annotation with run lengths, or with a box alone."""
    box = None
    segmentation = None
    if draw(st.integers(0, 4)):
        segmentation = rle.encode(draw(masks(size)))
    else:
        box = draw(st.tuples(_NUMBERS, _NUMBERS, _NUMBERS, _NUMBERS))
    return Annotation(
        segmentation=segmentation,
        id=number,
        category_id=draw(st.sampled_from([each.id for each in CATEGORIES])),
        box=box,
        area=draw(st.none() | st.floats(0.25, 1e6).filter(lambda area: not area.is_integer())),
        iscrowd=draw(st.booleans()),
        score=draw(_SCORES),
        predicted_iou=draw(_SCORES),
        stability_score=draw(_SCORES),
        point_coords=tuple(draw(st.lists(st.tuples(_NUMBERS, _NUMBERS), max_size=2))),
        crop_box=draw(st.none() | st.just((0.0, 0.0, 8.5, 9.0))),
        origin=draw(st.none() | st.sampled_from(Origin)),
        attributes=draw(ATTRIBUTES),
    )


@st.composite
def data_sets(draw: st.DrawFn) -> DataSet:
    """Images with unique names and ids."""
    ids = draw(st.lists(st.integers(-(2**53), 2**53), min_size=0, max_size=4, unique=True))
    records = []
    for number, image_id in enumerate(ids):
        size = Size(draw(st.integers(1, 14)), draw(st.integers(1, 14)))
        found = [
            draw(annotations(size, 1000 * number + each)) for each in range(draw(st.integers(0, 4)))
        ]
        name = draw(st.sampled_from(["a.jpg", "with space.png", "tief/er/Ü.jpeg", "images/x.png"]))
        records.append(
            ImageRecord(
                file_name=f"{number}/{name}",
                size=size,
                annotations=tuple(found),
                image_id=image_id,
                attributes=draw(ATTRIBUTES),
                metadata=draw(st.just({}) | st.just({"key": "0a", "nested": {"a": [1]}})),
            )
        )
    return DataSet(records, CATEGORIES)


@st.composite
def rings(draw: st.DrawFn, size: Size) -> tuple[tuple[float, float], ...]:
    """A ring of any corners, some outside of the image."""
    corner = st.tuples(st.floats(-3, size.width + 3), st.floats(-3, size.height + 3))
    return tuple(draw(st.lists(corner, min_size=3, max_size=8)))


@st.composite
def polygons(draw: st.DrawFn, size: Size) -> Polygons:
    """Parts without holes that may cross themselves and each other."""
    return Polygons(tuple((draw(rings(size)),) for _ in range(draw(st.integers(1, 3)))))


def mask_of(rows: str) -> BoolArray:
    """Return the mask that is drawn with ``#``, one row in each line."""
    return np.array([[each == "#" for each in row] for row in rows.split()])


def photo(path: Path, size: Size, **options: Any) -> Path:
    """Write an image of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size.width, size.height), (90, 120, 60)).save(path, **options)
    return path


def disc(size: Size, centre: tuple[float, float], radius: float) -> BoolArray:
    """Return a disc with a hole in its middle."""
    rows, columns = np.ogrid[: size.height, : size.width]
    distance = np.hypot(columns - centre[0], rows - centre[1])
    ring: BoolArray = (distance <= radius) & (distance > radius / 3)
    return ring
