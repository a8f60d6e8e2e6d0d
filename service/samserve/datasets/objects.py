"""Annotations and images as JSON objects, as SA-1B records and COCO files have them.

Keys that these formats do not define hold what they have no place for: ``score``, ``origin``,
``predicted_iou``; every other key becomes an attribute when it is read, and attributes are written
as such keys.  An attribute whose name is that of a key is written inside of ``attributes``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import Field, field_validator

from samserve.core import rle, run_lengths
from samserve.core.run_lengths import IntArray
from samserve.datasets import pixels
from samserve.datasets.types import Annotation, Origin, Polygons, Ring, Segmentation, Xywh
from samserve.datasets.validation import Id, Length, Model, Number, Text, parse
from samserve.errors import InvalidRequest
from samserve.types import CocoRle, Size

MAX_COORDINATE = 1e7
"""The largest coordinate of a polygon or a box, in pixels."""
Coordinate = Annotated[float, Field(ge=-MAX_COORDINATE, le=MAX_COORDINATE, allow_inf_nan=False)]
Box = tuple[Coordinate, Coordinate, Coordinate, Coordinate]


class RleObject(Model):
    """Run lengths, compressed or not."""

    size: tuple[Length, Length]
    counts: Any


class AnnotationObject(Model):
    """An annotation; of ``segmentation``, only the outer form is checked here."""

    segmentation: Any = None
    id: Id | None = None
    category_id: Id | None = None
    bbox: Box | None = None
    area: Number | None = None
    iscrowd: bool = False
    score: Number | None = None
    predicted_iou: Number | None = None
    stability_score: Number | None = None
    point_coords: tuple[tuple[Coordinate, Coordinate], ...] = ()
    crop_box: Box | None = None
    origin: Origin | None = None

    @field_validator("iscrowd", mode="before")
    @classmethod
    def _only_flags(cls, value: object) -> object:
        if value not in (0, 1):
            raise ValueError("must be 0 or 1")
        return bool(value)


class ImageObject(Model):
    """An image without its id, whose key depends on the format."""

    file_name: Text
    width: Length
    height: Length


ANNOTATION_KEYS = frozenset(AnnotationObject.model_fields) | {"image_id", "attributes"}
IMAGE_KEYS = frozenset(ImageObject.model_fields) | {"id", "image_id", "attributes", "annotations"}


def read_annotation(value: Any, size: Size, place: str) -> Annotation:
    """Return the annotation of an image of *size* in JSON.

    Raises `InvalidRequest`, which names *place*, the annotation's id and the key.
    """
    if isinstance(value, dict) and type(value.get("id")) is int:
        place = f"{place} (id {value['id']})"
    found = parse(AnnotationObject, _without_foreign_origin(value), place)
    segmentation, area = _read_segmentation(found.segmentation, size, place)
    if segmentation is None and found.bbox is not None:
        area = found.bbox[2] * found.bbox[3]
    extra = found.extra()
    extra.pop("image_id", None)
    if found.origin is None and isinstance(value.get("origin"), str):
        extra["origin"] = value["origin"]
    return Annotation(
        segmentation=segmentation,
        id=found.id,
        category_id=found.category_id,
        box=found.bbox if segmentation is None else None,
        # That of the pixels, or of the box, is computed when it is needed.
        area=None if found.area == area else found.area,
        iscrowd=found.iscrowd,
        score=found.score,
        predicted_iou=found.predicted_iou,
        stability_score=found.stability_score,
        point_coords=found.point_coords,
        crop_box=found.crop_box,
        origin=found.origin,
        attributes=extra,
    )


def _without_foreign_origin(value: Any) -> Any:
    """Return an annotation without an ``origin`` that means something else in its data set."""
    if isinstance(value, dict) and isinstance(value.get("origin"), str):
        known = value["origin"] in {each.value for each in Origin}
        return value if known else {**value, "origin": None}
    return value


def scores(annotation: Annotation) -> dict[str, Any]:
    """Return the keys that are written if they have a value, attributes included."""
    origin = None if annotation.origin is None else annotation.origin.value
    optional: dict[str, Any] = {
        "score": annotation.score,
        "predicted_iou": annotation.predicted_iou,
        "stability_score": annotation.stability_score,
        "crop_box": annotation.crop_box,
        "origin": origin,
    }
    value = {key: each for key, each in optional.items() if each is not None}
    if annotation.point_coords:
        value["point_coords"] = annotation.point_coords
    return value | keys(annotation.attributes, ANNOTATION_KEYS)


def keys(attributes: Mapping[str, Any], taken: frozenset[str]) -> dict[str, Any]:
    """Return attributes as keys of an object, those with *taken* names inside of ``attributes``."""
    free = {name: value for name, value in attributes.items() if name not in taken}
    inner = {name: value for name, value in attributes.items() if name in taken}
    nested = inner.pop("attributes", None)
    if inner:
        nested = {**nested, **inner} if isinstance(nested, Mapping) else inner
    return free if nested is None else {**free, "attributes": nested}


def rle_object(mask: CocoRle) -> dict[str, Any]:
    """Return run lengths as COCO writes them."""
    return {"size": [mask.size.height, mask.size.width], "counts": mask.counts}


def _read_segmentation(
    value: Any, size: Size, place: str
) -> tuple[Segmentation | None, float | None]:
    """Return the pixels, and their number if it is known."""
    if value is None or value in ([], {}):
        return None, None
    place = f"{place}: segmentation"
    if not isinstance(value, dict | list):
        raise InvalidRequest(place, "must be run lengths or a list of polygons")
    if isinstance(value, list):
        return Polygons(tuple((ring,) for ring in _rings(value, place))), None
    found = parse(RleObject, value, place)
    mask_size = Size(*found.size)
    if mask_size != size:
        height, width = found.size
        text = f"is of {width}x{height} pixels, the image has {size.width}x{size.height}"
        raise InvalidRequest(place, text)
    try:
        mask, runs = _mask(mask_size, found.counts)
    except ValueError as error:
        raise InvalidRequest(place, str(error)) from error
    return mask, float(runs[1::2].sum())


def _mask(size: Size, counts: Any) -> tuple[CocoRle, IntArray]:
    if isinstance(counts, str):
        mask = CocoRle(size, counts)
        return mask, pixels.runs_of(mask)
    if not isinstance(counts, list) or any(type(each) is not int or each < 0 for each in counts):
        raise ValueError("counts must be a string, or a list of whole numbers from 0")
    if sum(counts) != size.pixels:
        raise ValueError(f"counts sums to {sum(counts)} pixels, the size has {size.pixels}")
    # Checked again, for the maximum of pixels.
    runs = np.array(counts, dtype=np.int64)
    mask = rle.from_runs(size, runs)
    run_lengths.validate(size, mask.counts)
    return mask, runs


def _rings(value: list[Any], place: str) -> Iterator[Ring]:
    """Yield the rings of COCO's polygons: ``[[x, y, x, y, ...], ...]``."""
    for number, ring in enumerate(value):
        here = f"{place}[{number}]"
        if not isinstance(ring, list) or len(ring) < 6 or len(ring) % 2:
            raise InvalidRequest(here, "must be a list of x and y of at least 3 corners")
        for each in ring:
            if type(each) not in (int, float) or not abs(each) <= MAX_COORDINATE:
                text = f"has a coordinate that is not a number up to {MAX_COORDINATE:g}"
                raise InvalidRequest(here, text)
        yield tuple(zip(map(float, ring[::2]), map(float, ring[1::2]), strict=True))


def box_value(box: Xywh) -> list[float]:
    """Return a box as JSON, whole numbers without a fraction."""
    return [int(each) if each.is_integer() else each for each in map(float, box)]
