"""Reads a YOLO folder; sizes come from the image files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from samserve.datasets import image_files
from samserve.datasets.files import walk
from samserve.datasets.types import Annotation, DataSet, ImageRecord, Polygons, Xywh
from samserve.datasets.yolo.description import (
    IMAGES,
    LABELS,
    find_description,
    label_file,
    label_folder,
    read_description,
)
from samserve.datasets.yolo.strays import Strays
from samserve.errors import InvalidRequest, Violations
from samserve.types import Size

_DIGITS = 4
"""Digits of pixels that are kept: a corner halfway between pixels is one again."""
_BEYOND = 0.01
"""How far corners may be outside of the image, as parts of its side; Ultralytics' limit."""
SPLIT = "split"


def read(path: Path, images: Path | None) -> DataSet:
    """Return the data set of a YOLO folder or its YAML file.

    *images* is the folder of the image files if they are not below it.  Names of images are
    relative to the folder ``images``, ids of categories are the classes.  Raises
    `InvalidRequest` and ``OSError``.
    """
    file = find_description(path)
    if file is None:
        raise InvalidRequest(str(path), "has no data.yaml")
    description = read_description(file)
    if images is not None:
        labels = file.parent / LABELS
        strays = Strays(((labels, images),))
        return DataSet(_Separate(labels, images), description.categories, without_image=strays)
    found = _Folders(file.parent / IMAGES, description.splits)
    folders = tuple((label_folder(each), each) for each in found.folders())
    strays = Strays(folders)
    return DataSet(found, description.categories, without_image=strays)


@dataclass(frozen=True, slots=True)
class _Folders:
    """The images below the folders of a description, in order, each once."""

    root: Path
    splits: dict[str, tuple[Path, ...]]

    def __iter__(self) -> Iterator[ImageRecord]:
        return map(self._record, self._images())

    def _record(self, found: tuple[str, Path]) -> ImageRecord:
        split, path = found
        if not path.exists():
            raise InvalidRequest(str(path), "is missing")
        attributes = {SPLIT: split} if split else {}
        return _record(path, _name(path, self.root), label_file(path), attributes)

    def folders(self) -> list[Path]:
        """Return the folders with images, each once."""
        places = (place for each in self.splits.values() for place in each)
        return [place for place in dict.fromkeys(places) if place.is_dir()]

    def _images(self) -> Iterator[tuple[str, Path]]:
        seen: set[Path] = set()
        for split, places in self.splits.items():
            for place in places:
                if place.resolve() not in seen:
                    seen.add(place.resolve())
                    name = self._split(split, place)
                    yield from ((name, path) for path in _listed(place))

    def _split(self, first: str, place: Path) -> str:
        """Return the split of a folder; of one for several splits, that of its name, if any."""
        names = [name for name, places in self.splits.items() if place in places]
        if len(names) == 1:
            return first
        return place.name if place.name in names else ""


@dataclass(frozen=True, slots=True)
class _Separate:
    """The images of a folder, with labels below another one."""

    labels: Path
    images: Path

    def __iter__(self) -> Iterator[ImageRecord]:
        return map(self._record, filter(image_files.is_image, walk(self.images)))

    def _record(self, path: Path) -> ImageRecord:
        name = path.relative_to(self.images).as_posix()
        labels = label_file(Path(IMAGES, name)).relative_to(LABELS)
        return _record(path, name, self.labels / labels, {})


def _listed(place: Path) -> Iterator[Path]:
    """Yield the images of a folder, or of a list of paths; a missing one is yielded itself."""
    if place.is_dir():
        yield from filter(image_files.is_image, walk(place))
    elif place.suffix == ".txt" and place.is_file():
        for line in _text(place).splitlines():
            if line.strip():
                yield place.parent / line.strip()
    else:
        yield place


def _name(image: Path, root: Path) -> str:
    """Return the path below *root*, else below the last folder ``images``."""
    if image.is_relative_to(root):
        return image.relative_to(root).as_posix()
    parts = image.parts
    last = len(parts) - 2 - parts[-2::-1].index(IMAGES) if IMAGES in parts[:-1] else len(parts) - 2
    return "/".join(parts[last + 1 :])


def _record(image: Path, name: str, labels: Path, attributes: dict[str, str]) -> ImageRecord:
    size = image_files.size(image)
    violations = Violations()
    annotations: list[Annotation] = []
    if labels.is_file():
        for number, line in enumerate(_text(labels).splitlines(), start=1):
            with violations.collect():
                annotations += _annotation(line, size, f"{labels}: line {number}")
    violations.check()
    return ImageRecord(name, size, tuple(annotations), attributes=attributes)


def _annotation(line: str, size: Size, place: str) -> list[Annotation]:
    """Return the annotation of a line, none for an empty one."""
    words = line.split()
    if not words:
        return []
    category, values = _class(words[0], place), _values(words[1:], place)
    if len(values) == 4:
        return [Annotation(None, category_id=category, box=_box(values, size))]
    if len(values) < 6 or len(values) % 2:
        text = f"has {len(values)} values after the class: 4 of a box, or x and y of 3 corners"
        raise InvalidRequest(place, f"{text} or more")
    ring = tuple(
        (round(x * size.width, _DIGITS), round(y * size.height, _DIGITS))
        for x, y in zip(values[::2], values[1::2], strict=True)
    )
    return [Annotation(Polygons(((ring,),)), category_id=category)]


def _class(word: str, place: str) -> int:
    # Some tools write 0.0.
    number = _number(word, place)
    if not number.is_integer() or not 0 <= number < 2**31:
        raise InvalidRequest(place, f"{word[:40]!r} is not a class, a whole number from 0")
    return int(number)


def _values(words: list[str], place: str) -> list[float]:
    values = [_number(word, place) for word in words]
    for value in values:
        if not -_BEYOND <= value <= 1 + _BEYOND:
            text = f"{value:g} is not between 0 and 1: coordinates are parts of the image's sides"
            raise InvalidRequest(place, text)
    return values


def _number(word: str, place: str) -> float:
    try:
        return float(word)
    except ValueError as error:
        raise InvalidRequest(place, f"{word[:40]!r} is not a number") from error


def _box(values: list[float], size: Size) -> Xywh:
    x, y, width, height = values
    left, top = (x - width / 2) * size.width, (y - height / 2) * size.height
    found = (left, top, width * size.width, height * size.height)
    return tuple(round(each, _DIGITS) for each in found)  # type: ignore[return-value]


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidRequest(str(path), f"is not UTF-8: byte {error.start}") from error
