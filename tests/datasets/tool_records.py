"""Images with annotations, as annotation tools hold them, for Hypothesis; and their pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from samserve.core import run_lengths
from samserve.datasets import pixels
from samserve.datasets.types import Annotation, Category, ImageRecord, Origin, Polygons
from samserve.types import Size

CATEGORIES = (Category(3, "cat"), Category(7, 'a "dog" & <co>'), Category(8, "Hündchen"))
NAMES = ("a.jpg", "sub folder/b&c.png", "ü/#1 100%.jpg", "d'e\"f.webp")


@st.composite
def masks(draw: st.DrawFn, size: Size) -> Any:
    """Return run lengths of a mask that is not empty."""
    found = draw(arrays.arrays(np.bool_, (size.height, size.width)))
    found[draw(st.integers(0, size.height - 1)), draw(st.integers(0, size.width - 1))] = True
    return run_lengths.encode(found)


@st.composite
def triangles(draw: st.DrawFn, size: Size) -> Polygons:
    """Return polygons of one to three triangles that do not overlap, in quarters of pixels."""
    parts = []
    for number in range(draw(st.integers(1, 3))):
        left = number * size.width / 3
        right = left + size.width / 3
        x = st.floats(left, right).map(lambda value: round(value * 4) / 4)
        y = st.floats(0, size.height).map(lambda value: round(value * 4) / 4)
        corners = draw(st.lists(st.tuples(x, y), min_size=3, max_size=3, unique=True))
        parts.append((tuple(corners),))
    return Polygons(tuple(parts))


@st.composite
def annotations(draw: st.DrawFn, size: Size, *, boxes: bool = True) -> Annotation:
    """Return an annotation with run lengths, polygons or a box."""
    kinds = ["mask", "polygons", *(["box"] if boxes else [])]
    kind = draw(st.sampled_from(kinds))
    segmentation = None
    if kind == "mask":
        segmentation = draw(masks(size))
    elif kind == "polygons":
        segmentation = draw(triangles(size))
    quarter = st.integers(0, 8).map(lambda value: value / 4)
    score = st.none() | st.floats(0, 1)
    return Annotation(
        segmentation,
        category_id=draw(st.sampled_from([each.id for each in CATEGORIES])),
        box=(draw(quarter), draw(quarter), draw(quarter) + 1, draw(quarter) + 1)
        if segmentation is None
        else None,
        score=draw(score),
        predicted_iou=draw(score),
        stability_score=draw(score),
        origin=draw(st.sampled_from([None, *Origin])),
        attributes=draw(st.sampled_from([{}, {"colour": "red\r\n<>&"}])),
    )


@st.composite
def records(draw: st.DrawFn) -> list[ImageRecord]:
    """Return images with annotations."""
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=3))
    found = []
    for name in names:
        size = Size(draw(st.integers(3, 12)), draw(st.integers(3, 12)))
        own = draw(st.lists(annotations(size), max_size=4))
        found.append(ImageRecord(name, size, tuple(own)))
    return found


def mask_of(annotation: Annotation, size: Size) -> np.ndarray:
    """Return the pixels of an annotation, bool ``[h, w]``."""
    assert annotation.segmentation is not None
    return run_lengths.decode(pixels.to_rle(annotation.segmentation, size))


def has_pixels(annotation: Annotation, size: Size) -> bool:
    """Return whether an annotation is a box, or has a pixel."""
    return annotation.segmentation is None or bool(mask_of(annotation, size).any())


def facts(annotation: Annotation, size: Size, categories: Sequence[Category]) -> tuple[Any, ...]:
    """Return what a round trip must keep: pixels, label, scores, origin and attributes."""
    names = {each.id: each.name for each in categories}
    shape: Any
    if annotation.segmentation is None:
        shape = tuple(round(each, 4) for each in annotation.box or ())
    else:
        shape = mask_of(annotation, size).tobytes()
    return (
        shape,
        names[annotation.category_id or 0],
        *(annotation.score, annotation.predicted_iou, annotation.stability_score),
        annotation.origin,
        tuple(sorted(annotation.attributes.items())),
    )
