"""Finds what is wrong in a data set, image by image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from samserve.datasets import image_files, pixels
from samserve.datasets.files import check_name, walk
from samserve.datasets.types import Annotation, DataSet, ImageRecord, Polygons, Xywh
from samserve.errors import InvalidRequest
from samserve.types import Size

_BEYOND = 0.5
"""Pixels by which a box or a corner may be outside: some tools count from the pixels' centres."""


class Problem(Enum):
    """The kinds of findings."""

    INVALID = "not valid"
    NAME_TWICE = "two records of an image"
    ID_TWICE = "id used twice"
    CATEGORY = "unknown category"
    CATEGORY_TWICE = "category name used twice"
    EMPTY = "empty"
    OUTSIDE = "out of bounds"
    DUPLICATE = "duplicate"
    IMAGE_MISSING = "image missing"
    IMAGE_SIZE = "size differs from the image file"
    RECORD_MISSING = "record missing"


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with an image or one of its annotations; ``place`` is the image, or the file.

    ``annotation`` is the annotation's id, or its number from 1 with a ``#``; empty for the image.
    """

    problem: Problem
    place: str
    text: str
    annotation: str = ""


@dataclass(slots=True)
class Check:
    """A check of a data set; after `findings`, the numbers of what it contains.

    *images_folder* is that of the image files; without it, these are not looked at.  *complete* is
    whether each image in it should have a record.
    """

    data: DataSet
    images_folder: Path | None = None
    complete: bool = True
    images: int = 0
    annotations: int = 0
    _names: set[str] = field(default_factory=set)
    _image_ids: dict[int, str] = field(default_factory=dict)
    _ids: set[int] = field(default_factory=set)
    _categories: frozenset[int] = frozenset()
    _invalid: bool = False

    def findings(self) -> Iterator[Finding]:
        """Yield what is wrong.  Raises ``OSError``."""
        self._categories = frozenset(each.id for each in self.data.categories)
        yield from self._names_of_categories()
        records = iter(self.data.images)
        while True:
            try:
                record = next(records, None)
            except InvalidRequest as error:
                self._invalid = True
                for field_name, text in error.violations:
                    yield Finding(Problem.INVALID, field_name, text)
                continue
            if record is None:
                break
            self.images += 1
            self.annotations += len(record.annotations)
            yield from self._record(record)
        for file in self.data.without_image:
            yield Finding(Problem.IMAGE_MISSING, file, "has annotations, its image is missing")
        yield from self._without_record()

    def _names_of_categories(self) -> Iterator[Finding]:
        ids: dict[str, int] = {}
        for each in self.data.categories:
            other = ids.setdefault(each.name, each.id)
            if other != each.id:
                text = f"{other} and {each.id} have the same name {each.name!r}"
                yield Finding(Problem.CATEGORY_TWICE, "categories", text)

    def _record(self, record: ImageRecord) -> Iterator[Finding]:
        name = record.file_name
        if name in self._names:
            yield Finding(Problem.NAME_TWICE, name, "has another record, too")
        self._names.add(name)
        if record.image_id is not None:
            other = self._image_ids.setdefault(record.image_id, name)
            if other != name:
                text = f"the image id {record.image_id} is that of {other}, too"
                yield Finding(Problem.ID_TWICE, name, text)
        yield from self._file(record)
        seen: dict[object, tuple[int, str]] = {}
        for number, annotation in enumerate(record.annotations, start=1):
            label = f"#{number}" if annotation.id is None else str(annotation.id)
            for problem, text in self._annotation(annotation, record.size):
                yield Finding(problem, name, text, label)
            try:
                yield from _pixels(annotation, record, (number, label), seen)
            except InvalidRequest as error:
                yield Finding(Problem.INVALID, name, error.violations[0].description, label)

    def _file(self, record: ImageRecord) -> Iterator[Finding]:
        """Compare a record with its image file."""
        name, size = record.file_name, record.size
        try:
            check_name(name)
        except InvalidRequest as error:
            yield Finding(Problem.INVALID, name, f"the name {error.violations[0].description}")
            return
        if self.images_folder is None:
            return
        try:
            found = image_files.size(image_files.find(self.images_folder, name))
        except InvalidRequest as error:
            yield Finding(Problem.IMAGE_MISSING, name, error.violations[0].description)
            return
        if found != size:
            text = f"is {_text(size)}, the image file {_text(found)}"
            if (found.height, found.width) == (size.width, size.height):
                text += " as displayed, after its EXIF orientation"
            yield Finding(Problem.IMAGE_SIZE, name, text)

    def _annotation(self, annotation: Annotation, size: Size) -> Iterator[tuple[Problem, str]]:
        """Yield what is wrong, except with the pixels."""
        if annotation.id is not None:
            if annotation.id in self._ids:
                yield Problem.ID_TWICE, f"the annotation id {annotation.id} is used twice"
            self._ids.add(annotation.id)
        category = annotation.category_id
        if category is not None and category not in self._categories:
            yield Problem.CATEGORY, f"is of the category {category}, which is not defined"
        if annotation.segmentation is None and annotation.box is None:
            yield Problem.EMPTY, "has neither pixels nor a box"
        box = annotation.box
        if isinstance(annotation.segmentation, Polygons):
            box = pixels.rings_box(annotation.segmentation)
        elif box is not None and not (box[2] > 0 and box[3] > 0):
            yield Problem.EMPTY, f"its box is {box[2]:g} wide and {box[3]:g} high"
        if box is not None and _is_outside(box, size):
            text = ", ".join(f"{each:g}" for each in box)
            yield Problem.OUTSIDE, f"its box {text} is not inside of {_text(size)}"

    def _without_record(self) -> Iterator[Finding]:
        """Yield the images of the folder that have no record."""
        if self.images_folder is None or not self.complete:
            return
        # That of an image may be one that could not be read.
        text = f"the image has no {'valid ' if self._invalid else ''}record"
        for path in _images(self.images_folder):
            name = path.relative_to(self.images_folder).as_posix()
            if name not in self._names:
                yield Finding(Problem.RECORD_MISSING, name, text)


def _pixels(
    annotation: Annotation,
    record: ImageRecord,
    label: tuple[int, str],
    seen: dict[object, tuple[int, str]],
) -> Iterator[Finding]:
    """Yield what is wrong with the pixels; *label* is the number and the name of the annotation.

    Of an annotation without pixels, its box and category are compared.
    """
    if annotation.segmentation is None:
        other = seen.setdefault((annotation.box, annotation.category_id), label)
        if other != label and annotation.box is not None:
            text = f"has the box and the category of annotation {other[1]}"
            yield Finding(Problem.DUPLICATE, record.file_name, text, label[1])
        return
    key = pixels.fingerprint(annotation.segmentation, record.size)
    if key == pixels.EMPTY:
        yield Finding(Problem.EMPTY, record.file_name, "its mask has no pixels", label[1])
        return
    other = seen.setdefault(key, label)
    if other != label:
        text = f"its mask has the pixels of annotation {other[1]}"
        yield Finding(Problem.DUPLICATE, record.file_name, text, label[1])


def _images(folder: Path) -> Iterable[Path]:
    return filter(image_files.is_image, walk(folder))


def _is_outside(box: Xywh, size: Size) -> bool:
    left, top, width, height = box
    beyond = (-left, -top, left + width - size.width, top + height - size.height)
    return max(beyond) > _BEYOND


def _text(size: Size) -> str:
    return f"{size.width}x{size.height}"
