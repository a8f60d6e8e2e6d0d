"""Writes a YOLO folder; image files are linked, or copied to another disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from samserve.datasets import image_files, pixels, rings
from samserve.datasets.categories import default
from samserve.datasets.files import atomic_folder, check_name
from samserve.datasets.formats import WriteOptions, Written
from samserve.datasets.types import Annotation, Category, DataSet, ImageRecord, Polygons, Ring
from samserve.datasets.yolo.description import (
    FILE,
    IMAGES,
    LABELS,
    SPLITS,
    label_file,
    write_description,
)
from samserve.datasets.yolo.reading import SPLIT
from samserve.errors import InvalidRequest
from samserve.types import Size


def write(data: DataSet, out: Path, options: WriteOptions) -> Written:
    """Write the folder *out*, whole or not at all.

    Classes are the categories in the order of their ids.  Raises `InvalidRequest` for what cannot
    be read, for names that cannot be those of files, and ``OSError``.
    """
    ordered = tuple(sorted(data.categories, key=lambda each: each.id))
    with atomic_folder(out) as folder:
        for name in (IMAGES, LABELS):
            (folder / name).mkdir()
        writer = _Writer(folder, ordered, options)
        for record in data.images:
            writer.add(record)
        writer.end()
    return writer.written


class _Writer:
    def __init__(
        self, folder: Path, categories: tuple[Category, ...], options: WriteOptions
    ) -> None:
        self.written = Written()
        self._folder = folder
        self._options = options
        self._categories = categories
        self._default = default(categories)
        self._classes = {each.id: index for index, each in enumerate(categories)}
        self._splits: set[str] = set()

    def add(self, record: ImageRecord) -> None:
        """Write the labels of an image, and its file if the images are given."""
        image = self._folder / IMAGES / check_name(record.file_name)
        labels = self._folder / label_file(image.relative_to(self._folder))
        if labels.exists():
            text = f"its labels would be those of another image: {labels.relative_to(self._folder)}"
            raise InvalidRequest(record.file_name, text)
        with pixels.named(record.file_name):
            lines = self._lines(record)
        labels.parent.mkdir(parents=True, exist_ok=True)
        labels.write_text("".join(f"{line}\n" for line in lines), "utf-8")
        image.parent.mkdir(parents=True, exist_ok=True)
        if self._options.images is not None:
            _link(image_files.find(self._options.images, record.file_name), image)
        self._splits.add(_split(record))
        self.written.images += 1
        self.written.annotations += len(lines)

    def end(self) -> None:
        """Write the description."""
        categories = self._categories
        if self._default.id in self._classes and self._default not in categories:
            categories = (*categories, self._default)
        inside = self._splits - {""} == self._splits
        known = {name: f"{IMAGES}/{name}" for name in SPLITS if name in self._splits}
        splits = known if inside and known else {"train": IMAGES}
        # Ultralytics needs both.
        first = next(iter(splits.values()))
        splits = {"train": splits.get("train", first), "val": splits.get("val", first), **splits}
        write_description(self._folder / FILE, categories, splits)
        if self._options.images is None:
            self.written.remark(f"image files belong into {IMAGES}/: --images links them there")

    def _lines(self, record: ImageRecord) -> list[str]:
        boxes_only = all(each.segmentation is None for each in record.annotations)
        found = (
            self._line(each, record.size, boxes_only=boxes_only) for each in record.annotations
        )
        return [line for line in found if line]

    def _line(self, annotation: Annotation, size: Size, *, boxes_only: bool) -> str:
        """Return the line of an annotation; empty for one that is left out."""
        written = self.written
        if annotation.iscrowd:
            written.count("are of a crowd, left out")
            return ""
        number = self._class(annotation)
        if annotation.segmentation is None and annotation.box is None:
            written.count("have neither pixels nor a box, left out")
            return ""
        if annotation.segmentation is None and boxes_only:
            return _joined(number, _centre_box(annotation, size))
        ring = self._ring(annotation, size)
        if len(ring) < 3:
            written.count("have no pixels, left out")
            return ""
        _count_lost(annotation, written)
        values = [part for x, y in ring for part in (x / size.width, y / size.height)]
        inside = [min(max(value, 0.0), 1.0) for value in values]
        written.count("reached over the image, cut at its border", inside != values)
        return _joined(number, inside)

    def _class(self, annotation: Annotation) -> int:
        category = annotation.category_id
        if category is None:
            self.written.count("had no category, and are of the class 'object'")
            category = self._default.id
            self._classes.setdefault(category, len(self._classes))
        if category not in self._classes:
            text = f"is of the category {category}, which the data set does not define"
            raise InvalidRequest(f"annotation {annotation.id}", text)
        return self._classes[category]

    def _ring(self, annotation: Annotation, size: Size) -> Ring:
        written = self.written
        if annotation.segmentation is None:
            written.count("have only a box, written as a rectangle")
            left, top, width, height = annotation.box or (0.0, 0.0, 0.0, 0.0)
            right, bottom = left + width, top + height
            return ((left, top), (right, top), (right, bottom), (left, bottom))
        exact = isinstance(annotation.segmentation, Polygons)
        if not exact and self._options.tolerance > 0:
            text = f"became polygons, up to {self._options.tolerance:g} pixels from the outline"
            written.count(text)
        outline = pixels.to_polygons(annotation.segmentation, size, self._options.tolerance)
        written.count("have several parts, joined by bridges", len(outline.parts) > 1)
        written.count("have holes, joined by bridges", any(len(part) > 1 for part in outline.parts))
        return rings.joined_parts(outline.parts)


def _count_lost(annotation: Annotation, written: Written) -> None:
    """Count the values of an annotation that a line has no place for."""
    scores = (annotation.score, annotation.predicted_iou, annotation.stability_score)
    written.count("have scores, not written", any(each is not None for each in scores))
    written.count("have an id, not written", annotation.id is not None)
    others = (annotation.origin, annotation.point_coords, annotation.crop_box)
    written.count("have other values, not written", any(others) or bool(annotation.attributes))


def _split(record: ImageRecord) -> str:
    """Return the split of an image whose file is in a folder of that name; empty for others."""
    split = record.attributes.get(SPLIT)
    inside = isinstance(split, str) and record.file_name.startswith(f"{split}/")
    return str(split) if inside and split in SPLITS else ""


def _centre_box(annotation: Annotation, size: Size) -> list[float]:
    left, top, width, height = annotation.box or (0.0, 0.0, 0.0, 0.0)
    centre = ((left + width / 2) / size.width, (top + height / 2) / size.height)
    return [*centre, width / size.width, height / size.height]


def _joined(number: int, values: list[float]) -> str:
    # Nine digits are less than a ten-thousandth of a pixel, in images of up to 100,000 pixels.
    return " ".join([str(number), *(f"{value:.9f}".rstrip("0").rstrip(".") for value in values)])


def _link(source: Path, target: Path) -> None:
    """Link a file to a second name; copy it where that is not possible."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
