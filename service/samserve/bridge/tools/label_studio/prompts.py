"""Prompts from the regions that an annotator has drawn with Label Studio's smart tools.

A request has all such regions of one kind and label that are not accepted yet, so that a second
click adds a point to the first.  Coordinates are percentages of the image.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from samserve.client import Prompt
from samserve.datasets.label_studio.regions import PERCENT, identifier
from samserve.errors import InvalidRequest
from samserve.types import Size

MAX_REGIONS = 1000
_FIELD = "params.context.result"
_POINTS = ("keypointlabels", "keypoint")
_BOXES = ("rectanglelabels", "rectangle")


@dataclass(frozen=True, slots=True)
class Region:
    """A point, or the box of a rectangle, in percent of the image; ``rotation`` is in degrees."""

    id: str
    image: str
    item: int | None
    label: str
    x: float
    y: float
    positive: bool = True
    width: float = 0.0
    height: float = 0.0
    rotation: float = 0.0
    is_box: bool = False

    def contains(self, point: Region) -> bool:
        """Return whether a point is inside this rectangle, whose rotation is ignored."""
        inside_x = self.x <= point.x <= self.x + self.width
        return inside_x and self.y <= point.y <= self.y + self.height

    def corners(self, size: Size) -> list[tuple[float, float]]:
        """Return the corners of this rectangle in image pixels; it is rotated around the first."""
        x, y = _pixels(self.x, size.width), _pixels(self.y, size.height)
        width, height = _pixels(self.width, size.width), _pixels(self.height, size.height)
        angle = math.radians(self.rotation)
        cos, sin = math.cos(angle), math.sin(angle)
        sides = [(0.0, 0.0), (width, 0.0), (width, height), (0.0, height)]
        return [(x + dx * cos - dy * sin, y + dx * sin + dy * cos) for dx, dy in sides]


@dataclass(frozen=True, slots=True)
class Selection:
    """What the annotator has marked of one object: points, and at most one box, of a label."""

    label: str
    points: tuple[Region, ...]
    box: Region | None = None

    @property
    def id(self) -> str:
        """The id of its mask: the same while the annotator adds points, another one for others."""
        first = self.box or self.points[0]
        return identifier(first.id or uuid.uuid4().hex)

    def prompt(self, size: Size) -> Prompt:
        """Return the prompt in image pixels, clipped to the image."""
        points = [
            (
                _clipped(_pixels(each.x, size.width), size.width),
                _clipped(_pixels(each.y, size.height), size.height),
                int(each.positive),
            )
            for each in self.points
        ]
        if self.box is None:
            return Prompt(points=points)
        xs, ys = zip(*self.box.corners(size), strict=True)
        low = (_clipped(min(xs), size.width), _clipped(min(ys), size.height))
        high = (_clipped(max(xs), size.width), _clipped(max(ys), size.height))
        return Prompt(points=points, box=(*low, *high))


def regions(context: object) -> list[Region]:
    """Return the regions of a context; regions that are neither points nor boxes are ignored.

    Raises `InvalidRequest`.
    """
    if not isinstance(context, Mapping) or context.get("result") is None:
        return []
    found = context["result"]
    if not isinstance(found, list) or len(found) > MAX_REGIONS:
        raise InvalidRequest(_FIELD, f"is not a list of at most {MAX_REGIONS} regions")
    return [region for each in found if (region := _region(each)) is not None]


def selections(found: Sequence[Region]) -> list[Selection]:
    """Return the objects that regions mark, in the order of their labels and boxes.

    Every box is an object.  Points of its label refine the smallest box that they are in, the only
    box, or without a box an object of their own; that needs a point on the object.
    """
    return [
        selection
        for label in dict.fromkeys(each.label for each in found)
        for selection in _of_label(label, [each for each in found if each.label == label])
    ]


def _of_label(label: str, found: Sequence[Region]) -> list[Selection]:
    boxes = [each for each in found if each.is_box]
    points: dict[Region | None, list[Region]] = {each: [] for each in (*boxes, None)}
    for each in found:
        if not each.is_box:
            points[_owner(each, boxes)].append(each)
    alone = points.pop(None)
    made = [Selection(label, tuple(own), box) for box, own in points.items()]
    if any(each.positive for each in alone):
        made.append(Selection(label, tuple(alone)))
    return made


def _owner(point: Region, boxes: Sequence[Region]) -> Region | None:
    around = [each for each in boxes if each.contains(point)]
    if around:
        return min(around, key=lambda each: each.width * each.height)
    return boxes[0] if len(boxes) == 1 else None


def _region(result: object) -> Region | None:
    if not isinstance(result, Mapping):
        raise InvalidRequest(_FIELD, "has an element that is not an object")
    kind, value = result.get("type"), result.get("value")
    if kind not in (*_POINTS, *_BOXES) or not isinstance(value, Mapping):
        return None
    is_box = kind in _BOXES
    item = result.get("item_index")
    return Region(
        id=_text(result.get("id")),
        image=_text(result.get("to_name")),
        item=item if isinstance(item, int) and not isinstance(item, bool) else None,
        label=_label(value, kind),
        x=_number(value, "x"),
        y=_number(value, "y"),
        positive=bool(result.get("is_positive", True)),
        width=_number(value, "width") if is_box else 0.0,
        height=_number(value, "height") if is_box else 0.0,
        rotation=_number(value, "rotation", 0.0) if is_box else 0.0,
        is_box=is_box,
    )


def _label(value: Mapping[str, Any], kind: str) -> str:
    found = value.get(kind) or value.get("labels")
    return _text(found[0]) if isinstance(found, list) and found else ""


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _number(value: Mapping[str, Any], name: str, default: float | None = None) -> float:
    number = value.get(name, default)
    is_number = isinstance(number, int | float) and not isinstance(number, bool)
    # A larger percentage is no mistake of a hand at the edge of the image.
    if not is_number or not abs(number) <= 100 * PERCENT:
        raise InvalidRequest(_FIELD, f"has a region whose {name} is not a percentage")
    return float(number)


def _pixels(percent: float, side: int) -> float:
    return percent / PERCENT * side


def _clipped(value: float, side: int) -> float:
    return min(max(value, 0.0), float(side))
