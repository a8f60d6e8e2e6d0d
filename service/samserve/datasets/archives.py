"""Data sets in zip archives, as annotation tools export them: unpacked, and read as folders."""

from __future__ import annotations

import shutil
import tempfile
import weakref
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from zipfile import BadZipFile, ZipFile, ZipInfo, is_zipfile

from samserve.datasets.files import walk
from samserve.datasets.formats import Format
from samserve.datasets.image_files import is_image
from samserve.datasets.types import DataSet, ImageRecord
from samserve.errors import InvalidRequest

_DESCRIPTIONS = (".yaml", ".yml")
_IMAGES, _LABELS = "images", "labels"
_MAX_UNCHECKED_BYTES = 1 << 30
_MAX_RATIO = 200
"""Archives of more than `_MAX_UNCHECKED_BYTES` are not compressed as well: polygons tenfold."""


def format_of(formats: Sequence[Format]) -> Format:
    """Return the format of archives with a data set of one of *formats*."""

    def read(path: Path, images: Path | None) -> DataSet:
        """Unpack the archive into a temporary folder, which goes with the data set."""
        temporary = _TemporaryFolder()
        folder = temporary.path
        _unpack(path, folder)
        inside, chosen = _find(path, folder, formats)
        if (folder / _LABELS).is_dir() and not (folder / _IMAGES).exists() and images is not None:
            _link_images(folder, images)
            images = None
        found = chosen.read(inside, images)
        return replace(found, images=_Unpacked(found, temporary))

    return Format("zip", "a zip archive with one of these", is_zipfile, read)


class _TemporaryFolder:
    """A folder that is removed when this is not used any more: images are read while iterating."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="samserve-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class _Unpacked:
    """The images of an archive, whose files stay until this is not used any more."""

    data: DataSet
    folder: _TemporaryFolder

    def __iter__(self) -> Iterator[ImageRecord]:
        return _Reading(iter(self.data.images), self.folder)


@dataclass(frozen=True, slots=True)
class _Reading:
    """Holds the folder while images are read."""

    images: Iterator[ImageRecord]
    folder: _TemporaryFolder

    def __iter__(self) -> Iterator[ImageRecord]:
        return self

    def __next__(self) -> ImageRecord:
        return next(self.images)


def _unpack(path: Path, folder: Path) -> None:
    """Unpack all but images, and these too if their sizes are needed.

    Raises `InvalidRequest` for an archive that is damaged, encrypted or larger than the disk.
    """
    try:
        with ZipFile(path) as archive:
            every = [each for each in archive.infolist() if not each.is_dir()]
            names = {each.filename: PurePosixPath(each.filename) for each in every}
            needs_images = any(name.suffix in _DESCRIPTIONS for name in names.values())
            wanted = [each for each in every if needs_images or not is_image(names[each.filename])]
            # No member becomes larger than it says.
            total, free = sum(each.file_size for each in wanted), shutil.disk_usage(folder).free
            _check_ratio(path, total, sum(each.compress_size for each in wanted))
            if total > free:
                text = f"has {total} bytes unpacked, and {folder} has {free} bytes free"
                raise InvalidRequest(str(path), text)
            for each in wanted:
                _extract(archive, each, folder)
    except (BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise InvalidRequest(str(path), f"cannot be unpacked: {error}") from error


def _check_ratio(path: Path, total: int, packed: int) -> None:
    """Raise `InvalidRequest` for an archive that is made to fill a disk."""
    if total > _MAX_UNCHECKED_BYTES and total > _MAX_RATIO * packed:
        text = f"has {packed} bytes that become {total}, more than {_MAX_RATIO} times as many"
        raise InvalidRequest(str(path), f"{text}: unpack it, and name the folder")


def _extract(archive: ZipFile, member: ZipInfo, folder: Path) -> None:
    """Unpack a file below *folder*.  Raises `InvalidRequest` if that is not possible."""
    try:
        archive.extract(member, folder)
    except OSError as error:
        text = f"{member.filename[:200]!r} cannot be unpacked: {error.strerror or error}"
        raise InvalidRequest(str(archive.filename), text) from error


def _find(path: Path, folder: Path, formats: Sequence[Format]) -> tuple[Path, Format]:
    """Return the data set in a folder: the folder, or the only file that is one."""
    for each in formats:
        if each.recognises(folder):
            return folder, each
    files = [file for file in walk(folder) if not is_image(file)]
    found = [(file, each) for file in files for each in formats if each.recognises(file)]
    if not found:
        known = ", ".join(each.title for each in formats)
        raise InvalidRequest(str(path), f"contains no data set that is known: {known}")
    if len(found) > 1 and found[0][0] != found[1][0]:
        names = ", ".join(file.relative_to(folder).as_posix() for file, _ in found[:2])
        raise InvalidRequest(str(path), f"contains several data sets: {names}; unpack one of them")
    return found[0]


def _link_images(folder: Path, images: Path) -> None:
    """Make the images those of each subset, as CVAT leaves them out of its archives on request."""
    (folder / _IMAGES).mkdir()
    for subset in (folder / _LABELS).iterdir():
        if subset.is_dir():
            (folder / _IMAGES / subset.name).symlink_to(images.resolve(), target_is_directory=True)
