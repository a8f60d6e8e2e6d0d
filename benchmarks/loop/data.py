"""Synthetic images on disk, as data sets with the masks of their objects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from samserve.core import run_lengths
from samserve.datasets import coco
from samserve.datasets.formats import WriteOptions
from samserve.datasets.types import Annotation, DataSet, ImageRecord
from samserve.types import BoolArray, Size, UInt8Array

from benchmarks.loop.scenes import SIDE, other_scene
from training.scenes import Scene, SceneSettings, generate_scene

MIN_AREA = 300
"""Pixels of an object of a scene that is measured or trained."""
COCO_FILE = "coco.json"


@dataclass(frozen=True)
class LabelledImage:
    """An image file, what it shows, and the masks of its objects, bool ``[h, w]``."""

    path: Path
    kind: str
    masks: list[BoolArray]


def others(folder: Path, seed: int, indices: Iterable[int]) -> list[LabelledImage]:
    """Write images of kinds that the model is not trained on."""
    found = []
    for index in indices:
        scene = other_scene(seed, index)
        found.append(_written(folder / f"{index:04d}.png", scene.kind, scene.image, scene.masks))
    return found


def scenes(folder: Path, first: int, count: int, settings: SceneSettings) -> list[LabelledImage]:
    """Write scenes of the kind that `sam_tiny` is trained on."""
    found = []
    for seed in range(first, first + count):
        scene = generate_scene(seed, SIDE, settings)
        height, width = scene.size
        image = np.ascontiguousarray(scene.image[:height, :width])
        found.append(_written(folder / f"{seed}.png", "scene", image, list(_objects(scene))))
    return found


def write_coco(images: Iterable[LabelledImage], folder: Path) -> Path:
    """Write a COCO file beside the images, and return it."""
    records = (
        ImageRecord(
            labelled.path.name,
            Size(*labelled.masks[0].shape),
            tuple(Annotation(run_lengths.encode(mask)) for mask in labelled.masks),
        )
        for labelled in images
        if labelled.masks
    )
    file = folder / COCO_FILE
    file.unlink(missing_ok=True)
    coco.write(DataSet(list(records)), file, WriteOptions())
    return file


def _objects(scene: Scene) -> Iterator[BoolArray]:
    height, width = scene.size
    for level in scene.levels[:, :height, :width]:
        ids, areas = np.unique(level, return_counts=True)
        for each, area in zip(ids, areas, strict=True):
            if each > 0 and area >= MIN_AREA:
                yield np.ascontiguousarray(level == each)


def _written(path: Path, kind: str, image: UInt8Array, masks: list[BoolArray]) -> LabelledImage:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return LabelledImage(path, kind, masks)
