"""SA-1B records: a JSON file for each image, as ``segment-anything`` and `samserve annotate` write.

A record has the keys ``image`` and ``annotations``; ours also ``samserve``, the metadata.  Keys of
annotations beyond the format are in `objects`.  Pixels are run lengths; polygons are filled when
they are written.  Categories are in ``dataset.json`` beside the records, or above their folder.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from samserve.datasets import json_files, objects, pixels
from samserve.datasets.categories import categories_value, read_categories
from samserve.datasets.files import atomic, atomic_folder, check_name, walk
from samserve.datasets.formats import Format, WriteOptions, Written
from samserve.datasets.image_files import is_image
from samserve.datasets.types import Annotation, Category, DataSet, ImageRecord, Polygons
from samserve.datasets.validation import Id, Model, parse
from samserve.errors import InvalidRequest, Violations
from samserve.types import Size

FOLDER = "records"
DESCRIPTION = "dataset.json"
_TRIED = 20
"""Files of a folder that are looked at to find whether they are records."""
_OTHERS = (DESCRIPTION, "annotations.json", "categories.json")


class _Image(objects.ImageObject):
    image_id: Id | None = None


class _Record(Model):
    image: _Image
    annotations: list[Any]
    samserve: dict[str, Any] = Field(default_factory=dict)


def loads(data: bytes, place: str) -> ImageRecord:
    """Read the JSON of a record; *place* names it in errors.

    Raises `InvalidRequest` with the annotation and the key that are not valid.
    """
    found = parse(_Record, json_files.loads(data, place), place)
    size = Size(found.image.height, found.image.width)
    violations = Violations()
    annotations: list[Annotation] = []
    for number, value in enumerate(found.annotations):
        with violations.collect():
            where = f"{place}: annotations[{number}]"
            annotations.append(objects.read_annotation(value, size, where))
    violations.check()
    return ImageRecord(
        file_name=found.image.file_name,
        size=size,
        annotations=tuple(annotations),
        image_id=found.image.image_id,
        attributes=found.image.extra(),
        metadata=found.samserve,
    )


def dumps(record: ImageRecord) -> bytes:
    """Return the JSON of a record, in one line.

    Raises `InvalidRequest` for pixels that do not fit the image, or values that are not JSON.
    """
    image: dict[str, Any] = {} if record.image_id is None else {"image_id": record.image_id}
    image |= {
        "width": record.size.width,
        "height": record.size.height,
        "file_name": record.file_name,
        **objects.keys(record.attributes, objects.IMAGE_KEYS),
    }
    with pixels.named(record.file_name):
        annotations = [_value(each, record.size) for each in record.annotations]
    value: dict[str, Any] = {"image": image, "annotations": annotations}
    if record.metadata:
        value["samserve"] = dict(record.metadata)
    return json_files.dumps(value, record.file_name) + b"\n"


def read_file(path: Path) -> ImageRecord:
    """Read a record.  Raises `InvalidRequest` and ``OSError``."""
    return loads(path.read_bytes(), str(path))


def write_file(path: Path, record: ImageRecord) -> None:
    """Write a record atomically; its folder is made.  Raises `InvalidRequest` and ``OSError``."""
    data = dumps(record)
    with atomic(path) as file:
        file.write(data)


def record_path(folder: Path, file_name: str) -> Path:
    """Return the file of the record of the image *file_name* below *folder*.

    Raises `InvalidRequest` for a name that would lead out of the folder.
    """
    *parents, last = check_name(file_name).split("/")
    return folder.joinpath(*parents, f"{last}.json")


@dataclass(frozen=True, slots=True)
class RecordFiles:
    """The records below a folder, ordered by path, or a single one; hidden files are left out.

    Iterators continue after a record that is not valid.
    """

    folder: Path

    def paths(self) -> Iterator[Path]:
        """Yield the paths of the records."""
        if self.folder.is_file():
            yield self.folder
            return
        for path in walk(self.folder):
            if path.suffix == ".json" and not (path.parent == self.folder and path.name in _OTHERS):
                yield path

    def __iter__(self) -> Iterator[ImageRecord]:
        return map(read_file, self.paths())


def read_folder(path: Path) -> DataSet:
    """Return the data set of a folder of records, or of the output of `samserve annotate`.

    Raises `InvalidRequest` for categories that are not valid, and ``OSError``.
    """
    inner = path / FOLDER
    folder = inner if inner.is_dir() else path
    return DataSet(RecordFiles(folder), _categories(path))


def write_description(path: Path, categories: tuple[Category, ...], **others: Any) -> None:
    """Write ``dataset.json`` below the folder *path*: categories and other values."""
    value = {**others, "categories": categories_value(categories)}
    json_files.write(path / DESCRIPTION, value)


def source_of(path: Path) -> Path | None:
    """Return the folder, or the only image, that ``dataset.json`` below *path* names, if any."""
    try:
        value = json_files.read(path / DESCRIPTION)
    except (OSError, InvalidRequest):
        return None
    source = value.get("source") if isinstance(value, dict) else None
    if not isinstance(source, str) or not source or "\0" in source:
        return None
    # Relative to where the command ran: it may have been elsewhere.
    found = Path(source)
    return found if found.is_dir() or (is_image(found) and found.is_file()) else None


def _categories(path: Path) -> tuple[Category, ...]:
    for file in (path / DESCRIPTION, path.parent / DESCRIPTION):
        if file.is_file() and (file.parent == path or path.name == FOLDER):
            value = json_files.read(file)
            if not isinstance(value, dict):
                raise InvalidRequest(str(file), "must be a JSON object")
            return read_categories(value.get("categories", []), f"{file}: categories")
    return ()


def _value(annotation: Annotation, size: Size) -> dict[str, Any]:
    value: dict[str, Any] = {} if annotation.id is None else {"id": annotation.id}
    value |= _pixels(annotation, size)
    if annotation.category_id is not None:
        value["category_id"] = annotation.category_id
    if annotation.iscrowd:
        value["iscrowd"] = 1
    return value | objects.scores(annotation)


def _pixels(annotation: Annotation, size: Size) -> dict[str, Any]:
    if annotation.segmentation is None:
        box = None if annotation.box is None else objects.box_value(annotation.box)
        area = {} if annotation.area is None else {"area": annotation.area}
        return {"segmentation": None, "bbox": box, **area}
    mask = pixels.to_rle(annotation.segmentation, size)
    extent = pixels.extent_of(mask, size)
    return {
        "segmentation": objects.rle_object(mask),
        "bbox": list(extent.sa1b_box()),
        "area": extent.area if annotation.area is None else annotation.area,
    }


def _recognises(path: Path) -> bool:
    if path.is_file():
        return _is_record(path)
    if (path / FOLDER).is_dir():
        return True
    # The first ones may be broken.
    found = itertools.islice(RecordFiles(path).paths(), _TRIED)
    return any(map(_is_record, found))


def _is_record(path: Path) -> bool:
    return "image" in json_files.first_keys(path)


def _read(path: Path, images: Path | None) -> DataSet:
    return read_folder(path)


def _write(data: DataSet, out: Path, options: WriteOptions) -> Written:
    """Write a folder of records, whole or not at all."""
    written = Written()
    with atomic_folder(out) as folder:
        (folder / FOLDER).mkdir()
        for record in data.images:
            path = record_path(folder / FOLDER, record.file_name)
            if path.exists():
                raise InvalidRequest(record.file_name, "is the name of two images")
            write_file(path, record)
            written.images += 1
            written.annotations += len(record.annotations)
            filled = sum(isinstance(each.segmentation, Polygons) for each in record.annotations)
            written.count("had polygons, which were filled", filled)
        write_description(folder, data.categories)
    return written


FORMAT = Format("sa1b", "a folder of SA-1B records", _recognises, _read, _write, folder=True)
