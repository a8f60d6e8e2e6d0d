"""Reads CVAT's exports "CVAT for images 1.1": the XML, or the archive with it.

Masks become run lengths, polygons and ellipses polygons, boxes boxes, or polygons if they are
rotated.  Polygons of one group and label are the parts of one object, as in CVAT's export to COCO.
Other shapes are ignored: polylines, points, cuboids, skeletons, tags.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samserve.datasets import shapes
from samserve.datasets.cvat import elements
from samserve.datasets.cvat.elements import Element
from samserve.datasets.cvat.masks import BoxedMask, to_rle
from samserve.datasets.files import check_name
from samserve.datasets.objects import MAX_COORDINATE
from samserve.datasets.types import (
    Annotation,
    Category,
    DataSet,
    ImageRecord,
    Origin,
    Polygons,
    Segmentation,
    Xywh,
)
from samserve.errors import InvalidRequest, Violations
from samserve.types import Size

SOURCES = {
    Origin.PROPOSED: "auto",
    Origin.ACCEPTED: "file",
    Origin.CORRECTED: "semi-auto",
    Origin.ADDED: "manual",
}
"""What CVAT calls the origin of a shape.

``auto``: a model in CVAT has made it, unchanged since; ``file``: the same of a shape that
was imported; ``semi-auto``: a model and a person have made it; ``manual``: a person has, or has
changed one that was imported.
"""
SCORES = ("score", "predicted_iou", "stability_score")
"""Values of an annotation that are attributes in CVAT."""
GROUP, OCCLUDED, Z_ORDER, SUBSET, FRAME = "group_id", "occluded", "z_order", "subset", "frame"
_ORIGINS = {source: origin for origin, source in SOURCES.items()}
_MIN_CORNERS = 3


@dataclass(frozen=True, slots=True)
class _Images:
    """The images of a file; iterators continue after one that is not valid."""

    path: Path
    ids: Mapping[str, int]

    def __iter__(self) -> Iterator[ImageRecord]:
        return map(self._record, elements.images(self.path))

    def _record(self, image: Element) -> ImageRecord:
        name = check_name(image.attributes.get("name", ""))
        place = f"{self.path}: {name}"
        size = Size(_whole(image, "height", place, 1), _whole(image, "width", place, 1))
        violations = Violations()
        found: list[Annotation] = []
        for number, each in enumerate(image.children):
            with violations.collect():
                found += _annotation(each, size, self.ids, f"{place}: {each.tag} {number + 1}")
        violations.check()
        attributes: dict[str, Any] = {FRAME: _whole(image, "id", place, 0)}
        if SUBSET in image.attributes:
            attributes[SUBSET] = image.attributes[SUBSET]
        return ImageRecord(name, size, tuple(_grouped(found)), attributes=attributes)


def read(path: Path, images: Path | None = None) -> DataSet:
    """Return the data set of an export; *images* is not needed.

    Categories are the labels that the file defines, then others that occur.  Raises
    `InvalidRequest` and ``OSError``.
    """
    del images
    known = elements.labels(path)
    others = {
        shape.attributes["label"]
        for image in elements.images(path)
        for shape in image.children
        if shape.tag in _SHAPES and "label" in shape.attributes
    }
    names = [*known, *sorted(others - set(known))]
    categories = tuple(Category(number, name) for number, name in enumerate(names, 1))
    return DataSet(_Images(path, {each.name: each.id for each in categories}), categories)


def recognises(path: Path) -> bool:
    """Return whether a path seems to be such an export."""
    return elements.begins_as_cvat(path)


def _annotation(shape: Element, size: Size, ids: Mapping[str, int], place: str) -> list[Annotation]:
    """Return the annotation of a shape; none for one that is ignored."""
    if shape.tag not in _SHAPES:
        return []
    try:
        segmentation, box = _SHAPES[shape.tag](shape.attributes, size)
        group, z_order = int(shape.attributes.get(GROUP, 0)), int(shape.attributes.get(Z_ORDER, 0))
        values = {each.attributes["name"]: each.text for each in shape.children}
        scores = {name: _score(values.pop(name)) for name in SCORES if values.get(name)}
    except KeyError as error:
        raise InvalidRequest(place, f"has no {error.args[0]}") from error
    except ValueError as error:
        raise InvalidRequest(place, str(error)) from error
    attributes: dict[str, Any] = dict(values)
    if group:
        attributes[GROUP] = group
    if z_order:
        attributes[Z_ORDER] = z_order
    if shape.attributes.get(OCCLUDED) == "1":
        attributes[OCCLUDED] = True
    made = Annotation(
        segmentation=segmentation,
        category_id=ids.get(shape.attributes.get("label", "")),
        box=box,
        score=scores.get("score"),
        predicted_iou=scores.get("predicted_iou"),
        stability_score=scores.get("stability_score"),
        origin=_ORIGINS.get(shape.attributes.get("source", "")),
        attributes=attributes,
    )
    return [made]


def _grouped(found: Sequence[Annotation]) -> Iterator[Annotation]:
    groups: dict[object, list[Annotation]] = {}
    for number, each in enumerate(found):
        group = each.attributes.get(GROUP)
        is_part = group is not None and isinstance(each.segmentation, Polygons)
        key = ("group", group, each.category_id) if is_part else number
        groups.setdefault(key, []).append(each)
    yield from (shapes.merged(parts) for parts in groups.values())


def _mask(values: Mapping[str, str], size: Size) -> tuple[Segmentation, None]:
    runs = tuple(int(each) for each in values["rle"].split(","))
    left, top, width, height = (int(values[name]) for name in ("left", "top", "width", "height"))
    return to_rle(BoxedMask(runs, left, top, Size(height, width)), size), None


def _polygon(values: Mapping[str, str], _: Size) -> tuple[Segmentation, None]:
    pairs = [pair.split(",") for pair in values["points"].split(";")]
    if any(len(pair) != 2 for pair in pairs) or len(pairs) < _MIN_CORNERS:
        raise ValueError(f"its points are not x,y of {_MIN_CORNERS} corners or more")
    return Polygons(((tuple((_number(x), _number(y)) for x, y in pairs),),)), None


def _box(values: Mapping[str, str], _: Size) -> tuple[Segmentation | None, Xywh | None]:
    left, top, right, bottom = (_number(values[name]) for name in ("xtl", "ytl", "xbr", "ybr"))
    box = (left, top, round(right - left, 6), round(bottom - top, 6))
    angle = _number(values.get("rotation", "0"))
    if not angle % 360:
        return None, box
    middle = ((left + right) / 2, (top + bottom) / 2)
    x, y = (right - left) / 2, (bottom - top) / 2
    return shapes.rotated([(-x, -y), (x, -y), (x, y), (-x, y)], middle, angle), None


def _ellipse(values: Mapping[str, str], _: Size) -> tuple[Segmentation, None]:
    x, y, width, height = (_number(values[name]) for name in ("cx", "cy", "rx", "ry"))
    return shapes.ellipse((x, y), (width, height), _number(values.get("rotation", "0"))), None


_SHAPES = {"mask": _mask, "polygon": _polygon, "box": _box, "ellipse": _ellipse}


def _number(text: str) -> float:
    number = float(text)
    if not (math.isfinite(number) and abs(number) <= MAX_COORDINATE):
        raise ValueError(f"has a coordinate that is not a number up to {MAX_COORDINATE:g}")
    return number


def _score(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("has a score that is not a number")
    return number


def _whole(element: Element, name: str, place: str, least: int) -> int:
    text = element.attributes.get(name, "")
    if not (text.isascii() and text.isdigit() and least <= int(text[:12]) < 2**31):
        raise InvalidRequest(f"{place}: {name}", "is missing, or not a whole number")
    return int(text)
