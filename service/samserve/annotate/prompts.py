"""Annotating by given prompts: one mask for each box, or for the points, of a detector."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from math import isfinite
from pathlib import Path
from typing import Any

from samserve import images
from samserve.annotate.gateways import Gateways
from samserve.annotate.matching import match
from samserve.annotate.types import LoadedImage, Segmented
from samserve.client import Client, HqMode, Mask, Prompt
from samserve.datasets import coco, pixels, reading
from samserve.datasets.types import Annotation, Category, ImageRecord, Origin, Polygons, Xywh
from samserve.errors import InvalidRequest, Violations
from samserve.types import CocoRle, EncodedImage, Size

# The header of any image that a server might take.
_ANY_SIZE = images.ImageLimits(max_pixels=2**31 - 1, max_side=2**31 - 1)


class Kind(Enum):
    """What of an annotation is the prompt."""

    BOXES = "boxes"
    """Its ``bbox``; without one, the box of its pixels."""
    POINTS = "points"
    """Its ``point_coords``, or those of its ``keypoints`` that are labelled."""


@dataclass(frozen=True, slots=True)
class GivenPrompts:
    """The annotations of a detector's data set, without pixels, by the names of their images.

    ``categories`` are those of the data set, ``others`` counts its images that are not annotated
    in this run, ``unlabelled`` the annotations whose keypoints are all not labelled, which are left
    out.
    """

    kind: Kind
    annotations: Mapping[str, tuple[Annotation, ...]]
    categories: tuple[Category, ...] = ()
    others: int = 0
    unlabelled: int = 0

    @classmethod
    def read(
        cls, path: Path, kind: Kind, names: Iterable[str], image_list: Path | None = None
    ) -> GivenPrompts:
        """Read the prompts of the images *names*.  Blocks.

        *image_list* is the COCO file with the images of a list of results.  Raises
        `samserve.errors.InvalidRequest` for a data set that is not valid, and for an annotation
        without a box or without points; and ``OSError``.
        """
        if image_list is None and reading.identify(path) is coco.RESULTS:
            text = "is a list of results: --image-list must name the COCO file with their images"
            raise InvalidRequest(str(path), text)
        data = reading.open_dataset(
            path, images=image_list or reading.path_of(reading.find_images(path))
        )
        unlabelled = 0

        def prompts_of(record: ImageRecord) -> tuple[Annotation, ...]:
            nonlocal unlabelled
            found = [
                _prompting(each, number, record, kind)
                for number, each in enumerate(record.annotations)
            ]
            unlabelled += found.count(None)
            return tuple(each for each in found if each is not None)

        found = match(data.images, names, prompts_of)
        return cls(kind, found.values, data.categories, found.others, unlabelled)


@dataclass(frozen=True, slots=True)
class PromptSegmenter:
    """Returns one mask for each annotation, with its category, score and attributes.

    ``max_prompts`` and ``max_points`` are the server's limits of one Predict and of one prompt;
    ``hq_mode`` is for models of SAM-HQ.
    """

    model: str
    given: GivenPrompts
    max_prompts: int
    max_points: int
    hq_mode: HqMode | None = None

    @property
    def windowed(self) -> bool:
        """False: an image is sent as a whole."""
        return False

    def fingerprint(self, name: str) -> Mapping[str, Any]:
        """Return the digest of the image's prompts; for no name, that of all."""
        given = self.given.annotations
        values = given.get(name, ()) if name else [(key, given[key]) for key in sorted(given)]
        digest = hashlib.sha256(repr(_plain(values)).encode("utf-8", "surrogateescape"))
        method = {"method": self.given.kind.value, "prompts": digest.hexdigest()}
        return method | ({"hq_mode": self.hq_mode} if self.hq_mode else {})

    async def segment(self, gateways: Gateways, image: LoadedImage) -> Segmented:
        """Return the masks in the order of the annotations; boxes are clipped to the image.

        Raises `InvalidRequest`, which names the annotation, for a box with no pixel of the image
        and for points that are outside or too many.
        """
        data = image.data
        assert data is not None, "as it is not windowed"
        size = images.probe(EncodedImage(data), _ANY_SIZE)
        annotations = self.given.annotations.get(image.file.name, ())
        prompts = self._prompts(annotations, size)
        masks = []
        if prompts:
            masks = await gateways.call(lambda client: self._predict(client, data, prompts))
        pairs = zip(annotations, masks, strict=True)
        return Segmented(size, tuple(_annotation(each, mask) for each, mask in pairs))

    async def _predict(self, client: Client, data: bytes, prompts: Sequence[Prompt]) -> list[Mask]:
        """Return a mask for each prompt; all calls use the embedding of the first."""
        masks: list[Mask] = []
        source: Any = data
        for start in range(0, len(prompts), self.max_prompts):
            part = prompts[start : start + self.max_prompts]
            kept = None if source is data else data
            prediction = await client.predict(
                source, part, model=self.model, hq_mode=self.hq_mode, image=kept
            )
            source = prediction.embedding
            # SAM-HQ's modes and multimask's rule return one mask for each prompt.
            masks += [candidates[0] for candidates in prediction.results]
        return masks

    def _prompts(self, annotations: Sequence[Annotation], size: Size) -> list[Prompt]:
        violations = Violations()
        prompts: list[Prompt] = []
        for number, each in enumerate(annotations):
            with violations.collect():
                prompts.append(self._prompt(each, _name(each, number), size))
        violations.check()
        return prompts

    def _prompt(self, annotation: Annotation, name: str, size: Size) -> Prompt:
        if self.given.kind is Kind.BOXES:
            assert annotation.box is not None, "as annotations without one are not read"
            return Prompt(box=_clipped(annotation.box, name, size))
        points = annotation.point_coords
        if len(points) > self.max_points:
            text = f"{name} has {len(points)} points; the server takes at most {self.max_points}"
            raise InvalidRequest("points", f"{text} (limits.max_points)")
        for x, y in points:
            if not (0 <= x <= size.width and 0 <= y <= size.height):
                text = f"{name} has the point ({x:g}, {y:g}) outside of the image of"
                raise InvalidRequest("points", f"{text} {size.width}x{size.height} pixels")
        return Prompt(points=points)


def _prompting(
    annotation: Annotation, number: int, record: ImageRecord, kind: Kind
) -> Annotation | None:
    """Return an annotation without pixels, with what is its prompt.

    None for one whose keypoints are all not labelled: COCO has these for people in the distance.
    """
    place = f"{record.file_name}: {_name(annotation, number)}"
    bare = replace(annotation, segmentation=None, area=None, crop_box=None)
    if kind is Kind.BOXES:
        box = annotation.box or _box_of_pixels(annotation, record.size)
        if box is None:
            raise InvalidRequest(place, "has no bbox")
        return replace(bare, box=box, point_coords=())
    keypoints = annotation.attributes.get("keypoints")
    points = annotation.point_coords or _keypoints(keypoints, place)
    if not points and keypoints:
        return None
    if not points:
        raise InvalidRequest(place, "has neither point_coords nor keypoints")
    return replace(bare, box=None, point_coords=points)


def _box_of_pixels(annotation: Annotation, size: Size) -> Xywh | None:
    segmentation = annotation.segmentation
    if segmentation is None:
        return None
    if isinstance(segmentation, Polygons):
        return pixels.rings_box(segmentation)
    return pixels.extent_of(segmentation, size).coco_box()


def _keypoints(values: Any, place: str) -> tuple[tuple[float, float], ...]:
    """Return the points of COCO's triplets x, y, v with v above 0.  Raises `InvalidRequest`."""
    if values is None:
        return ()
    numbers = isinstance(values, list) and all(type(each) in (int, float) for each in values)
    if not numbers or len(values) % 3 or not all(map(isfinite, values)):
        raise InvalidRequest(f"{place}: keypoints", "must be a list of numbers x, y, v")
    triplets = zip(values[::3], values[1::3], values[2::3], strict=True)
    return tuple((float(x), float(y)) for x, y, visibility in triplets if visibility > 0)


def _clipped(box: Xywh, name: str, size: Size) -> tuple[float, float, float, float]:
    """Return a box XYXY inside of the image.  Raises `InvalidRequest` if nothing is left."""
    left, top, width, height = box
    x_min, x_max = max(left, 0.0), min(left + width, float(size.width))
    y_min, y_max = max(top, 0.0), min(top + height, float(size.height))
    if x_min < x_max and y_min < y_max:
        return (x_min, y_min, x_max, y_max)
    text = ", ".join(f"{each:g}" for each in box)
    if width <= 0 or height <= 0:
        raise InvalidRequest("boxes", f"{name} has an empty box: bbox [{text}]")
    image = f"{size.width}x{size.height} pixels"
    text = f"{name} has a box outside of the image of {image}: bbox [{text}]"
    raise InvalidRequest("boxes", text)


def _annotation(given: Annotation, mask: Mask) -> Annotation:
    """Return the annotation of a mask; its id is kept as the attribute ``prompt_id``."""
    source = {} if given.id is None else {"prompt_id": given.id}
    return replace(
        given,
        id=None,
        segmentation=CocoRle(Size(*mask.size), mask.counts),
        box=mask.bbox,
        area=mask.area,
        predicted_iou=mask.predicted_iou,
        stability_score=mask.stability_score,
        origin=Origin.PROPOSED,
        attributes={**given.attributes, **source},
    )


def _name(annotation: Annotation, number: int) -> str:
    """Return a text with the id of an annotation, or its number, from 0, if it has none."""
    return f"annotation {f'number {number}' if annotation.id is None else annotation.id}"


def _plain(values: Any) -> Any:
    """Return annotations as values whose text depends on their content only."""
    if isinstance(values, Annotation):
        attributes = json.dumps(values.attributes, sort_keys=True)
        prompt = (values.box, values.point_coords)
        return (values.id, values.category_id, values.score, values.iscrowd, *prompt, attributes)
    if isinstance(values, list | tuple):
        return [_plain(each) for each in values]
    return values
