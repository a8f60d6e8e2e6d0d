"""Reads COCO files and result lists: the text stays in memory, its objects are made one by one."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from samserve.core.run_lengths import IntArray
from samserve.datasets import objects
from samserve.datasets.categories import read_categories
from samserve.datasets.coco.scanning import Found, Text
from samserve.datasets.types import Annotation, Category, DataSet, ImageRecord
from samserve.datasets.validation import MAX_ID, Id, Model, parse
from samserve.errors import InvalidRequest, Violations
from samserve.types import Size

_LISTS = ("images", "annotations", "categories")


class _Image(objects.ImageObject):
    id: Id


class _ImageOf(Model):
    image_id: Id


def read_file(path: Path) -> DataSet:
    """Read a COCO file.

    Raises `InvalidRequest` for one that is not JSON, or without images, and ``OSError``.  Values of
    single images and annotations are checked when they are iterated over.
    """
    text = Text(path)
    file = _File.scan(text)
    if not file.images and not file.has_images:
        raise InvalidRequest(text.place, "has no key images")
    return DataSet(_Images(file, file.annotations), file.categories, file.attributes)


def read_results(path: Path, images: Path) -> DataSet:
    """Read the result list of a detector; *images* is a COCO file with its images and categories.

    Raises as `read_file` does, and for a result whose image is not in *images*.
    """
    file = _File.scan(Text(images))
    text = Text(path)
    results = _Index(text)
    for found in text.walk():
        if found.key or (found.number is None and found.value != []):
            raise InvalidRequest(text.place, "must be a list of results")
        if found.number is not None:
            results.add(found)
    return DataSet(_Images(file, results), file.categories, file.attributes)


class _Index:
    """Where the annotations of each image are."""

    def __init__(self, text: Text) -> None:
        self.text = text
        self._rows = array("q")
        self._ordered: tuple[IntArray, IntArray] | None = None

    def add(self, found: Found) -> None:
        """Note an annotation.  Raises `InvalidRequest` if it has no image."""
        number = found.number or 0
        place = _place(self.text, found.key, number)
        image_id = parse(_ImageOf, found.value, place).image_id
        self._rows.extend((image_id, number, found.start))

    def of(self, image_id: int) -> Iterator[tuple[int, Any]]:
        """Yield the numbers and the values of an image's annotations."""
        ids, rows = self.ordered()
        first, last = (
            np.searchsorted(ids, image_id, "left"),
            np.searchsorted(ids, image_id, "right"),
        )
        for number, start in rows[first:last].tolist():
            yield number, self.text.value(start)

    def ordered(self) -> tuple[IntArray, IntArray]:
        """Return the image ids ``[n]``, ordered, and the numbers and places ``[n, 2]``, int64."""
        if self._ordered is None:
            rows = np.frombuffer(self._rows, np.int64).reshape(-1, 3) if self._rows else _NO_ROWS
            rows = rows[np.argsort(rows[:, 0], kind="stable")]
            self._ordered = (np.ascontiguousarray(rows[:, 0]), np.ascontiguousarray(rows[:, 1:]))
        return self._ordered


_NO_ROWS = np.empty((0, 3), dtype=np.int64)


@dataclass(slots=True)
class _File:
    """What was found in a COCO file; ``images`` are the places of their objects."""

    text: Text
    annotations: _Index
    images: array[int]
    has_images: bool
    categories: tuple[Category, ...]
    attributes: dict[str, Any]

    @classmethod
    def scan(cls, text: Text) -> _File:
        """Walk through the file once."""
        file = cls(text, _Index(text), array("q"), has_images=False, categories=(), attributes={})
        categories: list[Any] = []
        for found in text.walk():
            if not found.key:
                raise InvalidRequest(text.place, "is a list, not a COCO file; of results?")
            file._add(found, categories)
        file.categories = read_categories(categories, f"{text.place}: categories")
        return file

    def _add(self, found: Found, categories: list[Any]) -> None:
        if found.key in _LISTS and found.number is None:
            if found.value != []:
                raise InvalidRequest(f"{self.text.place}: {found.key}", "must be a list")
            self.has_images = self.has_images or found.key == "images"
        elif found.key == "images":
            self.images.append(found.start)
        elif found.key == "annotations":
            self.annotations.add(found)
        elif found.key == "categories":
            categories.append(found.value)
        elif found.number is None:
            self.attributes[found.key] = found.value
        else:
            self.attributes.setdefault(found.key, []).append(found.value)


@dataclass(frozen=True, slots=True)
class _Images:
    """The images with their annotations.

    At the end, annotations of images that are not in the file are an error.
    """

    file: _File
    annotations: _Index

    def __len__(self) -> int:
        return len(self.file.images)

    def __iter__(self) -> Iterator[ImageRecord]:
        return _ImageIterator(self.file, self.annotations)


class _ImageIterator:
    """Continues after an image that is not valid."""

    def __init__(self, file: _File, annotations: _Index) -> None:
        self._file = file
        self._annotations = annotations
        self._next = 0
        self._seen: set[int] = set()
        self._ended = False

    def __iter__(self) -> Iterator[ImageRecord]:
        return self

    def __next__(self) -> ImageRecord:
        number = self._next
        if number == len(self._file.images):
            self._end()
            raise StopIteration
        self._next += 1
        return self._read(number)

    def _read(self, number: int) -> ImageRecord:
        text = self._file.text
        place = f"{text.place}: images[{number}]"
        value = text.value(self._file.images[number])
        image_id = value.get("id") if isinstance(value, dict) else None
        if type(image_id) is int and abs(image_id) <= MAX_ID:
            twice = image_id in self._seen
            self._seen.add(image_id)
            if twice:
                raise InvalidRequest(place, f"the id {image_id} is used twice")
        image = parse(_Image, value, place)
        size = Size(image.height, image.width)
        return ImageRecord(
            file_name=image.file_name,
            size=size,
            annotations=self._annotations_of(image.id, size),
            image_id=image.id,
            attributes=image.extra(),
        )

    def _annotations_of(self, image_id: int, size: Size) -> tuple[Annotation, ...]:
        key = "annotations" if self._annotations is self._file.annotations else ""
        violations = Violations()
        found: list[Annotation] = []
        for number, value in self._annotations.of(image_id):
            with violations.collect():
                place = _place(self._annotations.text, key, number)
                found.append(objects.read_annotation(value, size, place))
        violations.check()
        return tuple(found)

    def _end(self) -> None:
        """Raise `InvalidRequest` once if annotations have no image."""
        if self._ended:
            return
        self._ended = True
        ids, rows = self._annotations.ordered()
        strange = ~np.isin(ids, np.fromiter(self._seen, np.int64, len(self._seen)))
        if strange.any():
            first = int(np.flatnonzero(strange)[0])
            count = int(strange.sum())
            key = "annotations" if self._annotations is self._file.annotations else ""
            place = _place(self._annotations.text, key, int(rows[first, 0]))
            more = f"; so do {count - 1} more" if count > 1 else ""
            text = f"names the image {ids[first]}, which is not among the images{more}"
            raise InvalidRequest(place, text)


def _place(text: Text, key: str, number: int) -> str:
    return f"{text.place}: {key}[{number}]"
