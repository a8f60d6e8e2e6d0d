"""What annotators have done in Label Studio, from its exports: JSON and JSON-MIN.

Of several annotations of a task, the newest ground truth counts, or the newest one if there is
none; those that an annotator has skipped do not.  A task without annotations has the regions
of its newest prediction.  Brush strokes become run lengths, polygons and ellipses polygons,
rectangles boxes, or polygons if they are rotated.  Other regions, such as key points, are ignored;
choices, texts and numbers of a region become its attributes.

``image_rotation`` is how the image was shown: coordinates are those of the image as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from samserve.datasets import objects, shapes
from samserve.datasets.label_studio import exports, rle
from samserve.datasets.label_studio.exports import RegionObject, Task
from samserve.datasets.label_studio.images import file_name, image_urls, size_of
from samserve.datasets.label_studio.label_config import LabelConfig
from samserve.datasets.label_studio.regions import MIN_CORNERS, PERCENT
from samserve.datasets.label_studio.writing import CONFIG_NAME, META, TASKS_NAME
from samserve.datasets.types import (
    Annotation,
    Category,
    DataSet,
    ImageRecord,
    Origin,
    Polygons,
    Segmentation,
    Xywh,
)
from samserve.errors import InvalidRequest
from samserve.types import Size

_GEOMETRIES = {
    "brush": "rle",
    "polygon": "points",
    "rectangle": "width",
    "ellipse": "radiusX",
}
_VALUES = ("choices", "text", "number", "rating", "taxonomy", "datetime")
_BITMASK = "bitmask"


@dataclass(frozen=True, slots=True)
class TaskFile:
    """The images of the tasks of a file; iterators continue after a task that is not valid."""

    path: Path
    images: Path | None
    config: LabelConfig | None
    ids: Mapping[str, int] = field(default_factory=dict)

    def __iter__(self) -> Iterator[ImageRecord]:
        return map(_raised, self._records())

    def _records(self) -> Iterator[ImageRecord | InvalidRequest]:
        for task in exports.tasks(self.path):
            if isinstance(task, InvalidRequest):
                yield task
                continue
            try:
                yield from self._of_task(task)
            except InvalidRequest as error:
                yield error

    def _of_task(self, task: Task) -> list[ImageRecord]:
        urls = image_urls(task, self.config)
        names = [file_name(task, url, only=len(urls) == 1) for url in urls]
        return [self._of_image(task, item, name) for item, name in enumerate(names)]

    def _of_image(self, task: Task, item: int, name: str) -> ImageRecord:
        own = [each for each in task.regions if (each.item_index or 0) == item]
        size = size_of(task, own, name, self.images)
        found = [_annotation(parts, size, task, self.ids) for parts in _by_region(own)]
        image_id, attributes = task.data.get("image_id"), task.data.get("attributes")
        return ImageRecord(
            file_name=name,
            size=size,
            annotations=tuple(_joined([each for each in found if each is not None])),
            image_id=image_id if type(image_id) is int else None,
            attributes=attributes if isinstance(attributes, dict) else {},
        )


def read(path: Path, images: Path | None = None) -> DataSet:
    """Return the data set of an export, or of a folder that `write_folder` has written.

    Categories are the labels of `CONFIG_NAME` beside the file, then others that occur, in the order
    of their names.  *images* is the folder of the image files, for the sizes of images without
    regions.  Raises `InvalidRequest` and ``OSError``.
    """
    file = path / TASKS_NAME if path.is_dir() else path
    config_file = file.with_name(CONFIG_NAME)
    config = None
    if config_file.is_file():
        config = LabelConfig.parse(config_file.read_text("utf-8", "replace"))
    ids = {name: number for number, name in enumerate(_labels(file, config), 1)}
    categories = tuple(Category(number, name) for name, number in ids.items())
    return DataSet(TaskFile(file, images, config, ids), categories)


def recognises(path: Path) -> bool:
    """Return whether a path seems to be an export, or a folder with tasks."""
    if path.is_dir():
        file = path / TASKS_NAME
        return file.is_file() and ((path / CONFIG_NAME).is_file() or exports.is_export(file))
    return exports.is_export(path)


def _labels(file: Path, config: LabelConfig | None) -> Iterable[str]:
    known = [] if config is None else [label for each in config.controls for label in each.labels]
    found = {
        label
        for task in exports.tasks(file)
        if isinstance(task, Task)
        for parts in _by_region(task.regions)
        for label in [_label(parts)]
        if label
    }
    return dict.fromkeys([*known, *sorted(found - set(known))])


def _raised(found: ImageRecord | InvalidRequest) -> ImageRecord:
    if isinstance(found, InvalidRequest):
        raise found
    return found


def _by_region(found: Sequence[RegionObject]) -> list[list[RegionObject]]:
    """Return the results of each region: its own, and those of what was noted about it."""
    groups: dict[object, list[RegionObject]] = {}
    for number, each in enumerate(found):
        groups.setdefault(each.id if each.id else number, []).append(each)
    return list(groups.values())


def _geometry(parts: Sequence[RegionObject]) -> tuple[str, RegionObject] | None:
    """Return the shape of a region, and its result that is of a control for such shapes."""
    ranked = [
        (_rank(kind, each), kind, each)
        for each in parts
        for kind, key in _GEOMETRIES.items()
        if key in each.value
    ]
    if not ranked:
        return None
    _, kind, chosen = min(ranked, key=lambda each: each[0])
    return kind, chosen


def _rank(kind: str, region: RegionObject) -> int:
    # A brush stroke may have results of other controls too, whose label was selected meanwhile.
    own = (f"{kind}labels", "labels")
    labelled = _labels_of(region)
    if labelled and region.type in own:
        return own.index(region.type)
    return 2 if region.type in (kind, f"{kind}labels") else 3


def _labels_of(region: RegionObject) -> list[str]:
    found = region.value.get(region.type) or region.value.get("labels")
    return [each for each in found if isinstance(each, str)] if isinstance(found, list) else []


def _label(parts: Sequence[RegionObject]) -> str:
    shape = _geometry(parts)
    return "" if shape is None else next(iter(_labels_of(shape[1])), "")


def _annotation(
    parts: Sequence[RegionObject], size: Size, task: Task, ids: Mapping[str, int]
) -> tuple[str, Annotation] | None:
    """Return the annotation of a region, and the name of the object that it may be a part of."""
    shape = _geometry(parts)
    if shape is None:
        _check_kinds(parts, task)
        return None
    kind, region = shape
    place = f"{task.place}: region {region.id}"
    try:
        segmentation, box = _SHAPES[kind](region.value, size)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise InvalidRequest(place, f"is no {kind}: {error}") from error
    meta = (region.meta or {}).get(META)
    meta = dict(meta) if isinstance(meta, dict) else {}
    part = meta.pop("part", "")
    known = objects.read_annotation({"segmentation": None, "bbox": box, **meta}, size, place)
    attributes = {**known.attributes, **_noted(parts)}
    has_score = "score" in meta or "predicted_iou" in meta
    made = replace(
        known,
        segmentation=segmentation,
        box=box,
        category_id=ids.get(_label(parts)),
        score=known.score if has_score else region.score,
        origin=_origin(region, task, known.origin),
        attributes=attributes,
    )
    return (part if isinstance(part, str) else ""), made


def _origin(region: RegionObject, task: Task, before: Origin | None) -> Origin | None:
    """Return how a region came about; *before* is what it was when it was imported.

    Label Studio writes ``prediction`` for one that is as it was predicted, and
    ``prediction-changed``; nothing in an annotation that it has made of a prediction by itself.
    """
    if not task.has_origins:
        return None
    by_person = before in (Origin.ACCEPTED, Origin.CORRECTED, Origin.ADDED)
    if task.is_prediction:
        return before if by_person else Origin.PROPOSED
    origin = region.origin or ("prediction" if task.parent_prediction else "manual")
    if origin == "prediction":
        return before if by_person else Origin.ACCEPTED
    if origin == "prediction-changed":
        return Origin.ADDED if before is Origin.ADDED else Origin.CORRECTED
    return Origin.ADDED


def _noted(parts: Sequence[RegionObject]) -> dict[str, Any]:
    """Return what was chosen or written about a region, by the names of the controls."""
    return {
        each.from_name: each.value[key]
        for each in parts
        for key in _VALUES
        if key in each.value and each.from_name
    }


def _check_kinds(parts: Sequence[RegionObject], task: Task) -> None:
    for each in parts:
        if each.type.startswith(_BITMASK):
            text = "is a region of <BitMask>, which is not read: use <BrushLabels>"
            raise InvalidRequest(f"{task.place}: region {each.id}", text)


def _joined(found: Sequence[tuple[str, Annotation]]) -> Iterator[Annotation]:
    """Yield annotations; the parts that were one when they were written are one again."""
    groups: dict[object, list[Annotation]] = {}
    for number, (part, each) in enumerate(found):
        polygonal = part and isinstance(each.segmentation, Polygons)
        groups.setdefault((part, each.category_id) if polygonal else number, []).append(each)
    for group in groups.values():
        yield shapes.merged(group)


def _brush(value: Mapping[str, Any], size: Size) -> tuple[Segmentation, None]:
    if not isinstance(value["rle"], list):
        # Of a number, bytes would make as many zeros.
        raise TypeError("its rle is not a list of bytes")
    return rle.decode(bytes(value["rle"]), size), None


def _polygon(value: Mapping[str, Any], size: Size) -> tuple[Segmentation, None]:
    ring = tuple((_pixels(x, size.width), _pixels(y, size.height)) for x, y in value["points"])
    if len(ring) < MIN_CORNERS:
        raise ValueError(f"has fewer than {MIN_CORNERS} corners")
    return Polygons(((ring,),)), None


def _rectangle(value: Mapping[str, Any], size: Size) -> tuple[Segmentation | None, Xywh | None]:
    left, top = _pixels(value["x"], size.width), _pixels(value["y"], size.height)
    width, height = _pixels(value["width"], size.width), _pixels(value["height"], size.height)
    angle = float(value.get("rotation") or 0.0)
    if not angle % 360:
        return None, (left, top, width, height)
    sides = [(0.0, 0.0), (width, 0.0), (width, height), (0.0, height)]
    # Around the first corner.
    return shapes.rotated(sides, (left, top), angle), None


def _ellipse(value: Mapping[str, Any], size: Size) -> tuple[Segmentation, None]:
    centre = _pixels(value["x"], size.width), _pixels(value["y"], size.height)
    axes = _pixels(value["radiusX"], size.width), _pixels(value["radiusY"], size.height)
    return shapes.ellipse(centre, axes, float(value.get("rotation") or 0.0)), None


def _pixels(percent: object, side: int) -> float:
    if isinstance(percent, bool) or not isinstance(percent, int | float):
        raise TypeError("has a coordinate that is not a number")
    if not abs(percent) <= 100 * PERCENT:
        raise ValueError("has a coordinate that is not a percentage")
    return percent / PERCENT * side


_SHAPES = {
    "brush": _brush,
    "polygon": _polygon,
    "rectangle": _rectangle,
    "ellipse": _ellipse,
}
