"""Annotating what is missing in a data set: AutoMask without the masks that it has."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from samserve.annotate.automask import AutoMaskSegmenter
from samserve.annotate.gateways import Gateways
from samserve.annotate.matching import match
from samserve.annotate.types import LoadedImage, Segmented
from samserve.client import AutoMaskOptions
from samserve.datasets import coco, json_files, objects, pixels, reading
from samserve.datasets.types import ImageRecord, Origin
from samserve.errors import InvalidRequest
from samserve.types import CocoRle, Size


@dataclass(frozen=True, slots=True)
class Masks:
    """The masks of one image of a data set; ``without_pixels`` counts annotations that are boxes.

    ``digest`` is that of the masks in their order.
    """

    masks: tuple[CocoRle, ...]
    digest: str
    without_pixels: int = 0

    @classmethod
    def of(cls, record: ImageRecord) -> Masks:
        """Return the pixels of all annotations, of polygons those whose centres are inside.

        Raises `samserve.errors.InvalidRequest` as `samserve.datasets.pixels.to_rle` does.
        """
        masks = tuple(
            pixels.to_rle(each.segmentation, record.size)
            for each in record.annotations
            if each.segmentation is not None
        )
        return cls(masks, _digest(masks), len(record.annotations) - len(masks))

    def objects(self) -> list[dict[str, Any]]:
        """Return the run lengths as the option `exclude` of AutoMask takes them."""
        return [
            {"size": [each.size.height, each.size.width], "counts": each.counts}
            for each in self.masks
        ]


@dataclass(frozen=True, slots=True)
class Exclusions:
    """The masks of a data set, in memory, by the names of the images that have some.

    ``others`` counts images of the data set that are not annotated in this run.
    """

    masks: Mapping[str, Masks]
    others: int = 0

    @classmethod
    def read(cls, path: Path, names: Iterable[str]) -> Exclusions:
        """Read the masks of the images *names* from a data set of any format.  Blocks.

        Raises `samserve.errors.InvalidRequest` for one that is not valid, and ``OSError``.
        """
        data = reading.open_dataset(path, images=reading.path_of(reading.find_images(path)))
        found = match(data.images, names, Masks.of)
        return cls({name: each for name, each in found.values.items() if each.masks}, found.others)


def read_single(path: Path, name: str) -> Masks:
    """Return the masks of one image in a data set of any format.  Blocks.

    A data set of a single image is taken to be of this one, whatever its name is; so is a list of
    results, whose run lengths have its size.  Raises `samserve.errors.InvalidRequest` for a data
    set that is not valid or does not have the image, and ``OSError``.
    """
    if path.is_file() and reading.identify(path) is coco.RESULTS:
        return _of_results(path)
    data = reading.open_dataset(path, images=reading.path_of(reading.find_images(path)))
    first, second, *_ = (*itertools.islice(data.images, 2), None, None)
    if first is not None and second is None:
        return Masks.of(first)
    found = match(data.images, [name], Masks.of).values
    if name not in found:
        raise InvalidRequest(str(path), f"has no image {name!r}, or several of them")
    return found[name]


def _of_results(path: Path) -> Masks:
    """Return the masks of a list of results of one image."""
    results = json_files.read(path)
    images = {each.get("image_id") for each in results if isinstance(each, dict)}
    if len(images) > 1:
        raise InvalidRequest(str(path), f"has the results of {len(images)} images: convert it")
    masks: list[CocoRle] = []
    for number, value in enumerate(results):
        segmentation = value.get("segmentation") if isinstance(value, dict) else None
        size = segmentation.get("size") if isinstance(segmentation, dict) else None
        place = f"{path}: [{number}]"
        if not (isinstance(size, list) and len(size) == 2):
            raise InvalidRequest(f"{place}: segmentation", "must be run lengths with their size")
        image = Size(*size)
        annotation = objects.read_annotation(value, image, place)
        if annotation.segmentation is not None:
            masks.append(pixels.to_rle(annotation.segmentation, image))
    return Masks(tuple(masks), _digest(masks))


@dataclass(frozen=True, slots=True)
class MissingSegmenter:
    """Proposes what is missing: AutoMask with the masks of each image as its `exclude`.

    An image may have at most ``max_masks``, the server's `Limits.max_exclude_masks`.
    """

    automask: AutoMaskSegmenter
    exclusions: Exclusions
    max_masks: int

    @property
    def windowed(self) -> bool:
        """False: an image is sent as a whole."""
        return False

    def fingerprint(self, name: str) -> Mapping[str, Any]:
        """Return the options and the digest of the image's masks; for no name, that of all."""
        masks = self.exclusions.masks
        of_image = masks[name].digest if name in masks else ""
        digest = of_image if name else _combined(masks)
        return {**self.automask.fingerprint(name), "exclude": digest}

    async def segment(self, gateways: Gateways, image: LoadedImage) -> Segmented:
        """Return the new masks alone, as proposals.

        Raises `InvalidRequest` for an image with more masks than the server takes.
        """
        known = self.exclusions.masks.get(image.file.name)
        count = 0 if known is None else len(known.masks)
        if count > self.max_masks:
            text = f"has {count} masks in the data set; the server excludes at most"
            raise InvalidRequest("exclude", f"{text} {self.max_masks} (limits.max_exclude_masks)")
        automask = self.automask
        if known is not None:
            options = AutoMaskOptions(**{**automask.options, "exclude": known.objects()})
            automask = replace(automask, options=options)
        found = await automask.segment(gateways, image)
        proposed = (replace(each, origin=Origin.PROPOSED) for each in found.annotations)
        return replace(found, annotations=tuple(proposed))


def _digest(masks: Iterable[CocoRle]) -> str:
    texts = (f"{each.size.height}x{each.size.width} {each.counts}" for each in masks)
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def _combined(masks: Mapping[str, Masks]) -> str:
    texts = (f"{name}\0{masks[name].digest}" for name in sorted(masks))
    return hashlib.sha256("\n".join(texts).encode("utf-8", "surrogateescape")).hexdigest()
