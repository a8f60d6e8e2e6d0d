"""What every format is read into, and written from: images with their annotations, one at a time.

A data set is never in memory as a whole: readers yield one image after another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from samserve.types import CocoRle, Size

Xywh = tuple[float, float, float, float]
"""Left, top, width and height in image pixels."""
Ring = tuple[tuple[float, float], ...]
"""A closed line by its corners x, y in image pixels; the last one is connected to the first."""


class Origin(Enum):
    """How an annotation came about."""

    PROPOSED = "proposed"
    """By a model, not looked at by a person."""
    ACCEPTED = "accepted"
    """By a model; a person has left it as it is."""
    CORRECTED = "corrected"
    """By a model; a person has changed it."""
    ADDED = "added"
    """By a person."""


@dataclass(frozen=True, slots=True)
class Category:
    """A class of objects; ``id`` as in COCO, any whole number.

    ``attributes`` are further values, such as the names of keypoints.
    """

    id: int
    name: str
    supercategory: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Polygons:
    """Parts of an object, each as an exterior ring and its holes."""

    parts: tuple[tuple[Ring, ...], ...]


Segmentation = CocoRle | Polygons


@dataclass(frozen=True, slots=True)
class Annotation:
    """One object of an image.

    Its pixels are run lengths or polygons; without them, ``box`` says where it is.  ``area`` in
    pixels is that of the pixels if it is None.  ``score`` is that of the detector or of the
    annotation; ``point_coords`` are the prompts of a mask and ``crop_box`` the part of the image in
    which it was found, as in SA-1B.  ``attributes`` are further values that a format can hold.
    """

    segmentation: Segmentation | None
    id: int | None = None
    category_id: int | None = None
    box: Xywh | None = None
    area: float | None = None
    iscrowd: bool = False
    score: float | None = None
    predicted_iou: float | None = None
    stability_score: float | None = None
    point_coords: tuple[tuple[float, float], ...] = ()
    crop_box: Xywh | None = None
    origin: Origin | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image with its annotations; ``file_name`` is a relative path with ``/``.

    ``metadata`` has what samserve notes in its own records, see `samserve.annotate.records`.
    """

    file_name: str
    size: Size
    annotations: tuple[Annotation, ...]
    image_id: int | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DataSet:
    """Categories, and images that are read while they are iterated over, as often as needed.

    Iterating raises `samserve.errors.InvalidRequest` for a file or a value that is not valid, which
    it names; where the next image can be read nevertheless, the iterator continues with it.
    ``attributes`` are values about the whole, such as COCO's ``info`` and ``licenses``.
    ``without_image`` are files of annotations whose image is missing, found while iterating.
    """

    images: Iterable[ImageRecord]
    categories: tuple[Category, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    without_image: Iterable[str] = ()
