"""The images of CVAT's XML, one at a time, without anything that XML can do to its reader.

A document type is refused, and with it entities, of which a small file can make gigabytes.
Source: cvat/apps/dataset_manager/formats/cvat.py dump_as_cvat_annotation.
"""

from __future__ import annotations

import xml.parsers.expat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO
from zipfile import BadZipFile, ZipFile

from samserve.errors import InvalidRequest

FILE_NAME = "annotations.xml"
_CHUNK_BYTES = 1 << 16
_MAX_DEPTH = 20
_HEAD_BYTES = 1 << 12


@dataclass(slots=True)
class Element:
    """An element with the elements inside it, and its text."""

    tag: str
    attributes: dict[str, str]
    children: list[Element] = field(default_factory=list)
    text: str = ""

    def child_text(self, tag: str) -> str:
        """Return the text of the first child of a tag; empty if there is none."""
        return next((each.text.strip() for each in self.children if each.tag == tag), "")


def images(path: Path) -> Iterator[Element]:
    """Yield the elements ``image`` of a file.

    Raises `InvalidRequest` for what is not such a file, and ``OSError``.
    """
    yield from _elements(path, "image")


def labels(path: Path) -> list[str]:
    """Return the names of the labels that a file defines; raises as `images` does."""
    for meta in _elements(path, "meta"):
        found = (each for element in _all(meta, "labels") for each in element.children)
        names = (each.child_text("name") for each in found if each.tag == "label")
        return list(dict.fromkeys(name for name in names if name))
    return []


def begins_as_cvat(path: Path) -> bool:
    """Return whether a file, or the one in an archive, begins as CVAT's XML does."""
    if path.is_dir():
        return False
    try:
        with _opened(path) as file:
            head = file.read(_HEAD_BYTES)
    except InvalidRequest:
        return False
    return head.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"<") and b"<annotations" in head


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open the XML; raises `InvalidRequest` if an archive has none."""
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            file.seek(0)
            yield file
            return
    try:
        with ZipFile(path) as archive, archive.open(FILE_NAME) as member:
            yield member  # type: ignore[misc]  # IO[bytes] without what is not used
    except (BadZipFile, KeyError, NotImplementedError, RuntimeError) as error:
        raise InvalidRequest(str(path), f"is no archive with {FILE_NAME}") from error


def _elements(path: Path, tag: str) -> Iterator[Element]:
    builder = _Builder(str(path), tag)
    with _opened(path) as file:
        while data := file.read(_CHUNK_BYTES):
            yield from builder.feed(data)
        yield from builder.feed(b"", last=True)


def _all(element: Element, tag: str) -> Iterator[Element]:
    for each in element.children:
        if each.tag == tag:
            yield each
        else:
            yield from _all(each, tag)


class _Builder:
    """Makes the elements of a tag below the root ``annotations``; others are not kept."""

    def __init__(self, place: str, tag: str) -> None:
        self._place = place
        self._tag = tag
        self._depth = 0
        self._open: list[Element] = []
        self._made: list[Element] = []
        self._parser = xml.parsers.expat.ParserCreate()
        self._parser.buffer_text = True
        self._parser.StartDoctypeDeclHandler = self._doctype
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._characters

    def feed(self, data: bytes, *, last: bool = False) -> list[Element]:
        """Return the elements that have ended."""
        try:
            self._parser.Parse(data, last)
        except xml.parsers.expat.ExpatError as error:
            raise InvalidRequest(self._place, f"is not valid XML: {error}") from None
        made, self._made = self._made, []
        return made

    def _doctype(self, *_: object) -> None:
        raise InvalidRequest(self._place, "has a document type, which is not supported")

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise InvalidRequest(self._place, f"is deeper than {_MAX_DEPTH} elements")
        if self._depth == 1 and tag != "annotations":
            raise InvalidRequest(self._place, "is not CVAT's XML: its root is not <annotations>")
        if self._depth == 2 and tag == "track":
            text = "has tracks: export it as 'CVAT for images 1.1', which has none"
            raise InvalidRequest(self._place, text)
        if self._open or (self._depth == 2 and tag == self._tag):
            element = Element(tag, attributes)
            if self._open:
                self._open[-1].children.append(element)
            self._open.append(element)

    def _end(self, _: str) -> None:
        self._depth -= 1
        if self._open:
            element = self._open.pop()
            if not self._open:
                self._made.append(element)

    def _characters(self, text: str) -> None:
        if self._open:
            self._open[-1].text += text
