"""Writes "CVAT for images 1.1", which CVAT imports as annotations of a task with these images.

CVAT sets the source of all that it imports to ``file``, and keeps those attributes that its label
defines.  A polygon of CVAT is one ring: parts of an object are a group, and a hole is joined to the
ring around it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO
from xml.sax.saxutils import escape, quoteattr

from samserve.datasets import categories, pixels, rings
from samserve.datasets.cvat import masks
from samserve.datasets.cvat.reading import (
    FRAME,
    GROUP,
    OCCLUDED,
    SCORES,
    SOURCES,
    SUBSET,
    Z_ORDER,
)
from samserve.datasets.files import atomic, check_name
from samserve.datasets.formats import SegmentationKind, WriteOptions, Written
from samserve.datasets.types import Annotation, Category, DataSet, ImageRecord, Polygons
from samserve.datasets.xml_text import legal
from samserve.errors import InvalidRequest
from samserve.types import CocoRle, Size

_DIGITS = 4
_MIN_CORNERS = 3
_OWN = (GROUP, Z_ORDER, OCCLUDED)
_Shape = tuple[str, dict[str, str]]
"""The tag of a shape, and its geometry."""


def write_file(data: DataSet, path: Path, options: WriteOptions) -> Written:
    """Write the file *path*, whole or not at all.

    Raises `InvalidRequest` for what cannot be read, or written as XML, and ``OSError``.
    """
    writer = _Writer(data.categories, options)
    with atomic(path) as file:
        writer.write(data, file)
    return writer.written


class _Writer:
    def __init__(self, known: tuple[Category, ...], options: WriteOptions) -> None:
        self.written = Written()
        self._options = options
        self._default = categories.default(known).name
        self._names = {each.id: each.name for each in known}

    def write(self, data: DataSet, file: BinaryIO) -> None:
        """Write all."""
        labels = [*dict.fromkeys([*self._names.values(), self._default])]
        file.write(_encoded('<?xml version="1.0" encoding="utf-8"?>', "<annotations>"))
        file.write(_encoded("  <version>1.1</version>", *_meta(labels)))
        for number, image in enumerate(data.images):
            with pixels.named(image.file_name):
                lines = _encoded(*self._image(image, number))
            file.write(lines)
            self.written.images += 1
        file.write(_encoded("</annotations>"))

    def _image(self, image: ImageRecord, number: int) -> Iterator[str]:
        subset = image.attributes.get(SUBSET)
        others = image.attributes.keys() - {FRAME, SUBSET}
        if others:
            self.written.remark("images have further values, not written")
        attributes = {
            "id": str(number),
            "name": check_name(image.file_name),
            **({"subset": subset} if isinstance(subset, str) else {}),
            "width": str(image.size.width),
            "height": str(image.size.height),
        }
        yield f"  <image{_attributes(attributes, image.file_name)}>"
        groups = _Groups(image)
        for index, each in enumerate(image.annotations):
            place = f"{image.file_name}: annotations[{index}]"
            yield from self._annotation(each, image.size, groups, place)
        yield "  </image>"

    def _annotation(
        self, annotation: Annotation, size: Size, groups: _Groups, place: str
    ) -> Iterator[str]:
        shapes = self._shapes(annotation, size, place)
        self.written.count("have no pixels, left out", not shapes)
        if not shapes:
            return
        self.written.annotations += 1
        self._count_lost(annotation)
        common = {"label": self._label(annotation, place)}
        if annotation.origin is not None:
            common["source"] = SOURCES[annotation.origin]
        common["occluded"] = str(int(annotation.attributes.get(OCCLUDED) is True))
        group = groups.of(annotation, len(shapes))
        after = {"z_order": str(_whole(annotation.attributes, Z_ORDER))}
        if group:
            after[GROUP] = str(group)
        values = _values(annotation)
        for tag, geometry in shapes:
            yield f"    <{tag}{_attributes({**common, **geometry, **after}, place)}>"
            for name, value in values.items():
                text = escape(legal(value, place), {"\r": "&#13;"})
                yield f"      <attribute{_attributes({'name': name}, place)}>{text}</attribute>"
            yield f"    </{tag}>"

    def _shapes(self, annotation: Annotation, size: Size, place: str) -> list[_Shape]:
        found = annotation.segmentation
        if found is None:
            if annotation.box is None:
                raise InvalidRequest(place, "has neither pixels nor a box")
            left, top, width, height = annotation.box
            edges = (left, top, left + width, top + height)
            names = ("xtl", "ytl", "xbr", "ybr")
            return [("box", {n: _number(each) for n, each in zip(names, edges, strict=True)})]
        if self._as_mask(found):
            mask = masks.from_rle(pixels.to_rle(found, size))
            return [] if mask is None else [("mask", _mask(mask))]
        outline = pixels.to_polygons(found, size, self._options.tolerance)
        holes = any(len(part) > 1 for part in outline.parts)
        self.written.count("have holes, joined to the ring around them", holes)
        joined = [rings.joined(part) for part in outline.parts]
        return [
            ("polygon", {"points": ";".join(f"{_number(x)},{_number(y)}" for x, y in ring)})
            for ring in joined
            if len(ring) >= _MIN_CORNERS
        ]

    def _as_mask(self, found: CocoRle | Polygons) -> bool:
        wanted = self._options.segmentation
        if wanted is None:
            return isinstance(found, CocoRle)
        return wanted is SegmentationKind.RLE

    def _label(self, annotation: Annotation, place: str) -> str:
        if annotation.category_id is None:
            return self._default
        if annotation.category_id not in self._names:
            raise InvalidRequest(place, f"has no category of the id {annotation.category_id}")
        return self._names[annotation.category_id]

    def _count_lost(self, annotation: Annotation) -> None:
        others = annotation.attributes.keys() - set(_OWN) - set(_values(annotation))
        lost = (annotation.point_coords, annotation.crop_box, annotation.iscrowd, others)
        self.written.count("have an id, not written", annotation.id is not None)
        self.written.count("have other values, not written", any(lost))


class _Groups:
    """The numbers of the groups of an image."""

    def __init__(self, image: ImageRecord) -> None:
        self._last = max((_whole(each.attributes, GROUP) for each in image.annotations), default=0)

    def of(self, annotation: Annotation, parts: int) -> int:
        """Return the group of an annotation, a new one if it has parts; 0 for none."""
        own = _whole(annotation.attributes, GROUP)
        if own or parts == 1:
            return own
        self._last += 1
        return self._last


def _meta(labels: list[str]) -> Iterator[str]:
    yield "  <meta>\n    <task>\n      <labels>"
    for each in labels:
        name = escape(legal(each, "categories"))
        yield f"        <label><name>{name}</name><type>any</type><attributes/></label>"
    yield "      </labels>\n    </task>\n  </meta>"


def _values(annotation: Annotation) -> dict[str, str]:
    """Return the attributes of a shape: scores, and what is a text, a number or a truth value."""
    scores = {name: getattr(annotation, name) for name in SCORES}
    values: dict[str, Any] = {name: each for name, each in scores.items() if each is not None}
    values |= {
        name: each
        for name, each in annotation.attributes.items()
        if name not in (*_OWN, *SCORES) and isinstance(each, str | int | float)
    }
    return {name: _text(each) for name, each in values.items()}


def _text(value: str | float) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else repr(value)


def _mask(mask: masks.BoxedMask) -> dict[str, str]:
    return {
        "rle": ", ".join(map(str, mask.runs)),
        "left": str(mask.left),
        "top": str(mask.top),
        "width": str(mask.size.width),
        "height": str(mask.size.height),
    }


def _number(value: float) -> str:
    return repr(round(float(value), _DIGITS))


def _whole(values: Mapping[str, Any], name: str) -> int:
    value = values.get(name)
    return value if type(value) is int else 0


def _attributes(values: Mapping[str, str], place: str) -> str:
    return "".join(f" {name}={quoteattr(legal(each, place))}" for name, each in values.items())


def _encoded(*lines: str) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()
