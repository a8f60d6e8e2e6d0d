"""Opens a data set of any format."""

from __future__ import annotations

import itertools
from pathlib import Path

from samserve.datasets import archives, coco, sa1b, yolo
from samserve.datasets.cvat.format import FORMAT as CVAT
from samserve.datasets.formats import Format
from samserve.datasets.image_files import is_image
from samserve.datasets.label_studio.format import FORMAT as LABEL_STUDIO
from samserve.datasets.types import DataSet
from samserve.errors import InvalidRequest

_PLAIN = (CVAT, LABEL_STUDIO, sa1b.FORMAT, yolo.FORMAT, coco.FORMAT, coco.RESULTS)
FORMATS: tuple[Format, ...] = (*_PLAIN, archives.format_of(_PLAIN))
"""In the order in which they are tried."""


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


def find_images(path: Path) -> Path | None:
    """Return the folder of a data set's image files if it says where they are, or None.

    It is the source in ``dataset.json``, the folder of records that are beside their images, or the
    folder ``images`` of YOLO.
    """
    folder = path if path.is_dir() else path.parent
    for each in (folder, folder.parent if folder.name == sa1b.FOLDER else folder):
        source = sa1b.source_of(each)
        if source is not None:
            return source
    if yolo.FORMAT.recognises(path):
        images = folder / "images"
        return images if images.is_dir() else None
    beside = any(is_image(each) for each in itertools.islice(folder.iterdir(), 100))
    return folder if beside else None
