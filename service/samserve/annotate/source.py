"""The images of a folder, a list or a bucket, through `fsspec`."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec

from samserve.annotate import lists, locations
from samserve.annotate.lists import Failure
from samserve.annotate.locations import ARCHIVE_ERRORS, is_url, locate, reason_of
from samserve.client.images import FORMATS, SUFFIXES
from samserve.errors import InvalidRequest

MAX_FILE_BYTES = 512 << 20
"""Files over this are read in windows only."""
_CHUNK_BYTES = 1 << 20
_MAX_LIST_BYTES = 1 << 30
# How file systems name the hash of an object's content.
_TAGS = ("ETag", "etag", "md5Hash", "content_md5")


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image of a source: ``path`` in its file system, ``name`` relative to the source, with /.

    ``tag`` identifies the content if the file system has one, as buckets do; empty if not.  The
    ``path`` of an image of a list is a URL.
    """

    path: str
    name: str
    tag: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """The images of a source by name, what cannot be read, and the number of other files."""

    images: Sequence[ImageFile]
    failures: Sequence[Failure] = ()
    skipped: int = 0


@dataclass(frozen=True, slots=True)
class Source:
    """A folder, a text file with one path or URL in each line, or a URL of `fsspec`.  Picklable.

    A ``.zip`` file is a folder of its content; an image is a source of this image alone.
    """

    url: str

    def find(self, exclude: Collection[str] = ()) -> Found:
        """Return the images, ordered by name; folders in *exclude*, by path or URL, are left out.

        Subfolders are included; names that begin with a dot, and links to folders, are not.  Raises
        `samserve.errors.InvalidRequest` if there are no images.
        """
        file_system, path = self._root()
        try:
            info = file_system.info(path)
        except (OSError, *ARCHIVE_ERRORS) as error:
            raise InvalidRequest("source", f"{self}: {reason_of(error)}") from error
        if info["type"] == "directory":
            others = (locate(each, "exclude") for each in exclude)
            left_out = frozenset(other for system, other in others if system == file_system)
            found = _Walk(file_system, path.rstrip("/") or path, left_out).run()
        elif is_image(path):
            found = Found([ImageFile(path, path.rpartition("/")[2], _tag(info))])
        else:
            found = self._listed(file_system, path)
        if not found.images and not found.failures:
            raise InvalidRequest("source", f"{self}: contains no {FORMATS} file")
        return found

    def read(self, image: ImageFile) -> bytes:
        """Return the content of a file.  Blocks.

        Raises ``OSError``, and `samserve.errors.InvalidRequest` for more than `MAX_FILE_BYTES`.
        """
        with self.open(image) as opened:
            data = opened.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise InvalidRequest("image", f"is larger than {MAX_FILE_BYTES >> 20} MiB")
        return data

    def sha256(self, image: ImageFile) -> str:
        """Return the hash of a file, which may be larger than memory.  Blocks.

        Raises ``OSError``.
        """
        digest = hashlib.sha256()
        with self.open(image) as opened:
            while chunk := opened.read(_CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest()

    def open(self, image: ImageFile) -> BinaryIO:
        """Open a file for reading.  Blocks.  Raises ``OSError``."""
        file_system, path = self.located(image)
        try:
            return cast("BinaryIO", file_system.open(path, "rb"))
        except ARCHIVE_ERRORS as error:
            raise OSError(reason_of(error)) from error

    def located(self, image: ImageFile) -> tuple[fsspec.AbstractFileSystem, str]:
        """Return the file system of an image, and its path in it.

        Raises `samserve.errors.InvalidRequest` for a URL of a list that cannot be used.
        """
        if "://" in image.path:
            return locate(image.path, "image")
        return self.file_system(), image.path

    def file_system(self) -> fsspec.AbstractFileSystem:
        """Return the file system of ``ImageFile.path``, unless that is a URL."""
        return self._root()[0]

    def _root(self) -> tuple[fsspec.AbstractFileSystem, str]:
        if not is_url(self.url) and self.url.lower().endswith(".zip") and Path(self.url).is_file():
            try:
                return locations.open_zip(Path(self.url)), ""
            except (OSError, *ARCHIVE_ERRORS) as error:
                raise InvalidRequest("source", f"{self}: {reason_of(error)}") from error
        return locate(self.url, "source")

    def _listed(self, file_system: fsspec.AbstractFileSystem, path: str) -> Found:
        """Return the images that a text file names."""
        try:
            with file_system.open(path, "rb") as opened:
                data = opened.read(_MAX_LIST_BYTES + 1)
        except (OSError, *ARCHIVE_ERRORS) as error:
            raise InvalidRequest("source", f"{self}: {reason_of(error)}") from error
        if len(data) > _MAX_LIST_BYTES:
            raise InvalidRequest("source", f"{self}: is larger than {_MAX_LIST_BYTES >> 30} GiB")
        if b"\0" in data:
            text = "is neither an image nor a text file with one path or URL in each line"
            raise InvalidRequest("source", f"{self}: {text}")
        base = self.url if is_url(self.url) else f"file://{path}"
        entries, failures = lists.parse(data, base.rpartition("/")[0])
        return Found([ImageFile(each.url, each.name) for each in entries], failures)

    def __str__(self) -> str:
        """Return the path or URL, without secrets."""
        return locations.without_secrets(self.url)


def is_image(path: str) -> bool:
    """Return whether the name of a file is that of an image, and not hidden."""
    name = path.rpartition("/")[2]
    _, dot, suffix = name.rpartition(".")
    return f"{dot}{suffix.lower()}" in SUFFIXES and not name.startswith(".")


class _Walk:
    """Lists a folder and its subfolders."""

    def __init__(
        self, file_system: fsspec.AbstractFileSystem, root: str, left_out: frozenset[str]
    ) -> None:
        self._file_system = file_system
        self._root = root
        self._left_out = left_out
        self._images: list[ImageFile] = []
        self._failures: list[Failure] = []
        self._skipped = 0

    def run(self) -> Found:
        folders = [self._root]
        while folders:
            folder = folders.pop()
            for info in self._list(folder):
                path = str(info["name"]).rstrip("/")
                if path.strip("/") == folder.strip("/") or _is_hidden(path):
                    continue
                if info["type"] == "directory":
                    folders += [path] if path not in self._left_out else []
                elif not _is_special(info, self._file_system):
                    self._add(path, info)
        self._images.sort(key=lambda image: image.name)
        return Found(self._images, self._failures, self._skipped)

    def _list(self, folder: str) -> Iterator[Mapping[str, Any]]:
        try:
            yield from self._file_system.ls(folder, detail=True)
        except (OSError, *ARCHIVE_ERRORS) as error:
            self._failures.append(Failure(self._name(folder) or folder, reason_of(error)))

    def _add(self, path: str, info: Mapping[str, Any]) -> None:
        if not is_image(path):
            self._skipped += 1
            return
        self._images.append(ImageFile(path, self._name(path), _tag(info)))

    def _name(self, path: str) -> str:
        return path.strip("/").removeprefix(self._root.strip("/")).strip("/")


def _is_hidden(path: str) -> bool:
    return path.rpartition("/")[2].startswith(".")


def _is_special(info: Mapping[str, Any], file_system: fsspec.AbstractFileSystem) -> bool:
    """Return whether a path is not a file; reading a pipe, for instance, would block."""
    if not info.get("islink"):
        return bool(info["type"] != "file")
    try:
        return bool(file_system.info(info["name"])["type"] != "file")
    except OSError:
        return False  # reported when it is read


def _tag(info: Mapping[str, Any]) -> str:
    return next((str(info[each]).strip('"') for each in _TAGS if info.get(each)), "")
