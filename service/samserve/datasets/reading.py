"""Opens a data set of any format."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

from samserve.datasets import archives, coco, sa1b, yolo
from samserve.datasets.cvat.format import FORMAT as CVAT
from samserve.datasets.formats import Format
from samserve.datasets.image_files import find, is_image
from samserve.datasets.label_studio.format import FORMAT as LABEL_STUDIO
from samserve.datasets.types import DataSet
from samserve.errors import InvalidRequest

_PLAIN = (CVAT, LABEL_STUDIO, sa1b.FORMAT, yolo.FORMAT, coco.FORMAT, coco.RESULTS)
FORMATS: tuple[Format, ...] = (*_PLAIN, archives.format_of(_PLAIN))
"""In the order in which they are tried."""


@dataclass(frozen=True, slots=True)
class ImagesFolder:
    """The folder of a data set's image files; whether each image in it should have a record."""

    path: Path
    complete: bool


def path_of(folder: ImagesFolder | None) -> Path | None:
    """Return the path of a folder that may be unknown."""
    return None if folder is None else folder.path


def find_format(name: str) -> Format:
    """Return the format of a name.  Raises `InvalidRequest`."""
    for each in FORMATS:
        if each.name == name:
            return each
    known = ", ".join(each.name for each in FORMATS)
    raise InvalidRequest("format", f"{name!r} is not one of {known}")


def identify(path: Path) -> Format:
    """Return the format of the data set at *path*.

    Raises `InvalidRequest` if there is none, or it has no known format, and ``OSError``.
    """
    if not path.exists():
        raise InvalidRequest(str(path), "does not exist")
    if not (path.is_file() or path.is_dir()):
        raise InvalidRequest(str(path), "is neither a file nor a folder: it is read several times")
    for each in FORMATS:
        if each.recognises(path):
            return each
    known = ", ".join(each.title for each in FORMATS)
    raise InvalidRequest(str(path), f"is not a data set that is known: {known}")


def open_dataset(path: Path, format: str | None = None, images: Path | None = None) -> DataSet:  # noqa: A002
    """Return the data set at *path*, whose images are read while they are iterated over.

    *format* is the name of one of `FORMATS`, None to find it.  *images* is the folder of the image
    files; of a detector's results, a COCO file with their images.  Raises as `identify` does, and
    for a file that is not valid.
    """
    chosen = identify(path) if format is None else find_format(format)
    if not path.exists():
        raise InvalidRequest(str(path), "does not exist")
    return chosen.read(path, images)


def find_images(path: Path) -> ImagesFolder | None:
    """Return the folder of a data set's image files if that can be found, or None.

    It is the source in ``dataset.json``, the folder ``images`` of YOLO, or the folder of the data
    set if its first image is there.  Raises as `identify` does.
    """
    folder = path if path.is_dir() else path.parent
    for each in (folder, folder.parent if folder.name == sa1b.FOLDER else folder):
        source = sa1b.source_of(each)
        if source is not None:
            # Of a single image, the others in its folder are not meant.
            return ImagesFolder(source if source.is_dir() else source.parent, source.is_dir())
    if yolo.FORMAT.recognises(path):
        images = folder / "images"
        return ImagesFolder(images, complete=True) if images.is_dir() else None
    beside = any(is_image(each) for each in itertools.islice(folder.iterdir(), 100))
    if beside and _has_first_image(path, folder):
        return ImagesFolder(folder, complete=False)
    return None


def _has_first_image(path: Path, folder: Path) -> bool:
    try:
        first = next(iter(open_dataset(path).images), None)
        return first is not None and find(folder, first.file_name).is_file()
    except InvalidRequest:
        return False
