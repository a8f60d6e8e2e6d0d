"""Tasks with predictions for Label Studio, and the label config that they fit.

Everything is a prediction, which an annotator accepts or corrects.  What regions have no place for
is in their ``meta``, which Label Studio keeps: `META`.  Brush strokes hold every pixel.  Label
Studio's polygons are one ring: each part is a region of its own, and a hole is joined to the ring
around it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np

from samserve.datasets import categories, json_files, objects, pixels, rings
from samserve.datasets.files import atomic_folder, check_name
from samserve.datasets.formats import SegmentationKind, WriteOptions, Written
from samserve.datasets.label_studio import regions
from samserve.datasets.label_studio.label_config import Control, LabelConfig
from samserve.datasets.label_studio.regions import Json, Place
from samserve.datasets.types import Annotation, Category, DataSet, ImageRecord
from samserve.datasets.xml_text import legal
from samserve.errors import InvalidRequest

TASKS_NAME = "tasks.json"
CONFIG_NAME = "label_config.xml"
META = "samserve"
"""The key in a region's ``meta`` for `objects.scores`, ``id``, ``iscrowd`` and ``part``."""
LOCAL_FILES = "/data/local-files/?d="
"""Beginning of the URLs of files below Label Studio's `LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT`."""
_MODEL_VERSION = "samserve"
_IMAGE = "image"
_KINDS = {SegmentationKind.RLE: "brushlabels", SegmentationKind.POLYGONS: "polygonlabels"}
_BOXES = "rectanglelabels"
_TAGS = {
    "brushlabels": ("BrushLabels", "brush"),
    "polygonlabels": ("PolygonLabels", "polygon"),
    _BOXES: ("RectangleLabels", "box"),
}


def write_folder(data: DataSet, path: Path, options: WriteOptions) -> Written:
    """Write `TASKS_NAME` and, unless the options have a label config, `CONFIG_NAME`.

    Raises `InvalidRequest` for what Label Studio cannot hold, and ``OSError``.
    """
    config = None
    if options.label_config is not None:
        config = LabelConfig.parse(options.label_config.read_text("utf-8", "replace"))
    writer = TaskWriter(data.categories, options, config)
    with atomic_folder(path) as folder:
        with (folder / TASKS_NAME).open("wb") as file:
            file.write(b"[\n")
            for image in data.images:
                file.write(b",\n" if writer.written.images else b"")
                file.write(json_files.dumps(writer.task(image), image.file_name))
                writer.written.images += 1
            file.write(b"\n]\n")
        if config is None:
            (folder / CONFIG_NAME).write_text(writer.label_config(), "utf-8")
    return writer.written


@dataclass(frozen=True, slots=True)
class _Object:
    """An annotation with what its regions have in common."""

    image: ImageRecord
    annotation: Annotation
    label: str
    place: str


class TaskWriter:
    """Makes the tasks of a data set; ``written`` counts annotations."""

    def __init__(
        self, known: tuple[Category, ...], options: WriteOptions, config: LabelConfig | None
    ) -> None:
        self._options = options
        self._config = config
        self._default = categories.default(known).name
        self._names = {each.id: each.name for each in known}
        # In order; a label of annotations without a category is added when there are such.
        self._labels = dict.fromkeys(self._names.values())
        # The name of the image in the config, and the key of its URL.
        self._image, self._key = (_IMAGE, _IMAGE) if config is None else config.image_of("")
        self.written = Written()

    def task(self, image: ImageRecord) -> Json:
        """Return the task of an image.  Raises `InvalidRequest`, which names the image."""
        check_name(image.file_name)
        made: list[tuple[float, list[Json]]] = []
        for number, each in enumerate(image.annotations):
            place = f"{image.file_name}: annotations[{number}]"
            found = _Object(image, each, self._label(each, place), place)
            region_id = regions.identifier(f"{image.file_name}:{number}")
            with pixels.named(image.file_name):
                made.append(self._regions(found, region_id))
        # The largest first, so that it hides no smaller one.
        made.sort(key=lambda pair: -pair[0])
        result = [region for _, found in made for region in found]
        version = self._options.model_version or _model_of(image.metadata)
        data: Json = {
            "file_name": image.file_name,
            "width": image.size.width,
            "height": image.size.height,
        }
        if image.image_id is not None:
            data["image_id"] = image.image_id
        if image.attributes:
            data["attributes"] = dict(image.attributes)
        data[self._key] = image_url(self._options.image_url_prefix, image.file_name)
        return {"data": data, "predictions": [regions.prediction(result, version)]}

    def label_config(self) -> str:
        """Return a label config for the tasks that were made."""
        labels = [
            f"    <Label value={quoteattr(legal(each, 'categories'))}/>"
            for each in self._labels or (self._default,)
        ]
        kinds = [_KINDS[self._options.segmentation or SegmentationKind.RLE], _BOXES]
        controls = []
        for tag, name in (_TAGS[kind] for kind in kinds):
            controls += [f'  <{tag} name="{name}" toName="{_IMAGE}">', *labels, f"  </{tag}>"]
        image = f'  <Image name="{_IMAGE}" value="${_IMAGE}" zoom="true"/>'
        return "\n".join(["<View>", image, *controls, "</View>", ""])

    def _label(self, annotation: Annotation, place: str) -> str:
        if annotation.category_id is None:
            name = self._default
        elif annotation.category_id in self._names:
            name = self._names[annotation.category_id]
        else:
            raise InvalidRequest(place, f"has no category of the id {annotation.category_id}")
        self._labels.setdefault(name)
        return name

    def _regions(self, found: _Object, region_id: str) -> tuple[float, list[Json]]:
        """Return the area of an annotation, and its regions."""
        annotation, size = found.annotation, found.image.size
        control, area, values = self._values(found)
        self.written.annotations += bool(values)
        self.written.count("have no pixels, left out", not values)
        score = annotation.predicted_iou if annotation.score is None else annotation.score
        meta = objects.scores(annotation)
        if annotation.id is not None:
            meta["id"] = annotation.id
        if annotation.iscrowd:
            meta["iscrowd"] = 1
        if len(values) > 1:
            meta["part"] = region_id
        made = []
        for index, value in enumerate(values):
            own = region_id if index == 0 else f"{region_id}-{index}"
            region = regions.region(value, size, Place(control, found.label), own, score)
            made.append({**region, "meta": {META: meta}} if meta else region)
        return area, made

    def _values(self, found: _Object) -> tuple[Control, float, list[Json]]:
        """Return the control of an annotation, its area, and the values of its regions."""
        annotation, size = found.annotation, found.image.size
        if annotation.segmentation is None:
            if annotation.box is None:
                raise InvalidRequest(found.place, "has neither pixels nor a box")
            box = annotation.box
            value = regions.rectangle(box, size)
            return self._control(found, (_BOXES,)), box[2] * box[3], [value]
        wanted = self._options.segmentation
        kinds = tuple(_KINDS.values()) if wanted is None else (_KINDS[wanted],)
        control = self._control(found, kinds)
        area = float(pixels.extent_of(annotation.segmentation, size).area)
        if not area:
            return control, area, []
        if control.kind == _KINDS[SegmentationKind.RLE]:
            return control, area, [_brush(found)]
        tolerance = self._options.tolerance if control.tolerance is None else control.tolerance
        outline = pixels.to_polygons(annotation.segmentation, size, tolerance)
        holes = any(len(part) > 1 for part in outline.parts)
        self.written.count("have holes, joined to the ring around them", holes)
        corners = (np.array(rings.joined(part)) for part in outline.parts)
        values = [
            regions.polygon(each, size) for each in corners if len(each) >= regions.MIN_CORNERS
        ]
        return control, area, values

    def _control(self, found: _Object, kinds: tuple[str, ...]) -> Control:
        """Return the first control of the kinds that has the label."""
        if self._config is None:
            return Control(kinds[0], _TAGS[kinds[0]][1], self._image, ())
        for each in self._config.controls:
            fits = each.kind in kinds and each.image == self._image and not each.skipped
            if fits and each.accepts(found.label):
                return each
        tags = " or ".join(f"<{_TAGS[kind][0]}>" for kind in kinds)
        text = f"the label config has no {tags} with the label {found.label[:60]!r}"
        raise InvalidRequest(found.place, text)


def _brush(found: _Object) -> Json:
    """Return the value of a brush stroke.  Raises `InvalidRequest` for too many pixels."""
    assert found.annotation.segmentation is not None
    mask = pixels.to_rle(found.annotation.segmentation, found.image.size)
    try:
        return regions.brush(mask)
    except ValueError as error:
        raise InvalidRequest(found.place, str(error)) from error


def image_url(prefix: str, file_name: str) -> str:
    """Return the URL of an image: the name after the prefix, or after `LOCAL_FILES` if it is empty.

    The name is quoted, but after a scheme such as ``s3``, whose names are not.
    """
    prefix = prefix or LOCAL_FILES
    scheme = prefix.partition("://")[0] if "://" in prefix else "http"
    quoted = quote(os.fsencode(file_name)) if scheme.startswith("http") else file_name
    return prefix + quoted


def _model_of(metadata: Mapping[str, Any]) -> str:
    """Return the version of the model that has made a record, as for predictions of the bridge."""
    model, digest = metadata.get("model"), metadata.get("digest")
    if not (isinstance(model, str) and model):
        return _MODEL_VERSION
    return f"{model} {digest[:8]}" if isinstance(digest, str) and digest else model
