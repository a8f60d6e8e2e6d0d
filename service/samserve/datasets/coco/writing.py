"""Writes a COCO file one image at a time: memory does not grow with the data set."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from samserve.datasets import json_files, objects, pixels, rings
from samserve.datasets.categories import categories_value, default
from samserve.datasets.files import atomic
from samserve.datasets.formats import SegmentationKind
from samserve.datasets.types import Annotation, Category, ImageRecord, Polygons
from samserve.errors import InvalidRequest
from samserve.types import CocoRle, Size


@dataclass(frozen=True, slots=True)
class CocoOptions:
    """How a COCO file is written.

    Without ``segmentation``, run lengths and polygons are written as they are.  Polygons join holes
    to their exterior by a bridge, see `rings`.  ``tolerance`` is the maximum distance in pixels
    between an outline and its polygon; at 0 both have the same pixels.  With ``keep_ids``, images
    and annotations keep theirs; else they are numbered from 1, in order.  ``attributes`` are
    further keys of the file, such as ``info``.
    """

    segmentation: SegmentationKind | None = None
    tolerance: float = 0.0
    keep_ids: bool = False
    attributes: Mapping[str, Any] = field(default_factory=dict)


class IdsNotUnique(InvalidRequest):
    """An id is missing or used twice: `CocoOptions.keep_ids` is not possible."""


class CocoWriter:
    """Writes images and annotations; use `coco_writer`.

    ``without_category`` counts the annotations that got the default category.
    """

    def __init__(
        self, images: _Items, annotations: _Items, default: Category, options: CocoOptions
    ) -> None:
        self.without_category = 0
        self._images = images
        self._annotations = annotations
        self._default = default
        self._options = options
        self._image_ids = _Ids("image", keep=options.keep_ids)
        self._annotation_ids = _Ids("annotation", keep=options.keep_ids)

    def add(self, record: ImageRecord) -> None:
        """Write an image with its annotations.

        Raises `InvalidRequest` for pixels that do not fit, `IdsNotUnique`, and ``OSError``.
        """
        name = record.file_name
        image_id = self._image_ids.next(record.image_id, name)
        image = {
            "id": image_id,
            "file_name": name,
            "width": record.size.width,
            "height": record.size.height,
            **objects.keys(record.attributes, objects.IMAGE_KEYS),
        }
        self._images.add(json_files.dumps(image, name))
        for annotation in record.annotations:
            number = self._annotation_ids.next(annotation.id, name)
            with pixels.named(name):
                own = self._value(annotation, record.size)
            value = {"id": number, "image_id": image_id, **own}
            self._annotations.add(json_files.dumps(value, f"{name}: annotation {number}"))

    def _value(self, annotation: Annotation, size: Size) -> dict[str, Any]:
        category = annotation.category_id
        if category is None:
            category = self._default.id
            self.without_category += 1
        return {
            "category_id": category,
            **_pixels(annotation, size, self._options),
            "iscrowd": int(annotation.iscrowd),
            **objects.scores(annotation),
        }


@contextmanager
def coco_writer(
    path: Path, categories: tuple[Category, ...], options: CocoOptions | None = None
) -> Iterator[CocoWriter]:
    """Yield a writer; the file appears, or is replaced, when the block ends without an error.

    Annotations wait in a second temporary file.  Raises ``OSError``.
    """
    options = options or CocoOptions()
    fallback = default(categories)
    with atomic(path) as file, tempfile.TemporaryFile(dir=path.parent) as annotations:
        for name, value in options.attributes.items():
            if name not in ("images", "annotations", "categories"):
                key, text = (json_files.dumps(each, str(path)) for each in (name, value))
                file.write((b", " if file.tell() else b"{") + key + b": " + text)
        file.write((b", " if file.tell() else b"{") + b'"images": [')
        images = _Items(file)
        writer = CocoWriter(images, _Items(annotations), fallback, options)
        yield writer
        file.write(b'\n], "annotations": [')
        annotations.seek(0)
        shutil.copyfileobj(annotations, file, 1 << 20)
        known = {each.id: each for each in categories}
        if writer.without_category:
            known.setdefault(fallback.id, fallback)
        value = categories_value(known.values())
        file.write(b'\n], "categories": ' + json_files.dumps(value, str(path)) + b"}\n")


class _Items:
    """The elements of a JSON array, each in a line."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._separator = b"\n"

    def add(self, value: bytes) -> None:
        """Write one element."""
        self._file.write(self._separator + value)
        self._separator = b",\n"


class _Ids:
    """Numbers from 1, or the given ids, which must be unique."""

    def __init__(self, kind: str, *, keep: bool) -> None:
        self._kind = kind
        self._used: set[int] | None = set() if keep else None
        self._last = 0

    def next(self, given: int | None, name: str) -> int:
        """Return the id of the next object, of the image *name*."""
        if self._used is None:
            self._last += 1
            return self._last
        if given is None:
            raise IdsNotUnique(name, f"has no {self._kind} id")
        if given in self._used:
            raise IdsNotUnique(name, f"the {self._kind} id {given} is used twice")
        self._used.add(given)
        return given


def _pixels(annotation: Annotation, size: Size, options: CocoOptions) -> dict[str, Any]:
    """Return the keys of pixels, area and box."""
    found = annotation.segmentation
    if found is None:
        left, top, width, height = annotation.box or (0.0, 0.0, 0.0, 0.0)
        area = width * height if annotation.area is None else annotation.area
        box = objects.box_value((left, top, width, height))
        return {"segmentation": [], "area": area, "bbox": box}
    outline = None
    if not _is_rle(annotation, options):
        outline = pixels.to_polygons(found, size, options.tolerance)
    # An empty mask has no outline.
    if outline is None or not outline.parts:
        mask = pixels.to_rle(found, size)
        extent = pixels.extent_of(mask, size)
        area = extent.area if annotation.area is None else annotation.area
        value = objects.rle_object(mask)
        return {"segmentation": value, "area": area, "bbox": list(extent.coco_box())}
    area = pixels.extent_of(found, size).area if annotation.area is None else annotation.area
    box = objects.box_value(pixels.rings_box(outline) or (0.0, 0.0, 0.0, 0.0))
    return {"segmentation": _polygons(outline), "area": area, "bbox": box}


def _is_rle(annotation: Annotation, options: CocoOptions) -> bool:
    if annotation.iscrowd:
        # Tools know crowds by their run lengths.
        return True
    if options.segmentation is None:
        return isinstance(annotation.segmentation, CocoRle)
    return options.segmentation is SegmentationKind.RLE


def _polygons(found: Polygons) -> list[list[float]]:
    return [
        [value for corner in rings.joined(part) for value in corner] for part in found.parts if part
    ]
