"""What a decoder is tuned and measured on: images with the masks of their objects."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from samserve.core import run_lengths
from samserve.datasets import pixels
from samserve.datasets.types import ImageRecord, Segmentation
from samserve.errors import SamserveError
from samserve.images import ImageLimits, decode
from samserve.tuning.errors import TuningError
from samserve.types import CocoRle, EncodedImage, Size, UInt8Array

LIMITS = ImageLimits(max_pixels=100_000_000, max_side=32_768)
MIN_TRAINED, MIN_HELD_OUT = 8, 4
"""Objects that a training part and a held-out part have at least."""
HELD_OUT, REPLAY_HELD_OUT = "the held-out part", "the held-out part of the old data"
UNKNOWN = "unknown"
WEIGHTS = {"proposed": 0.25, "accepted": 1.0, "corrected": 2.0, "added": 2.0, UNKNOWN: 1.0}
"""Weight of an object in the loss by the origin of its annotation.  Where a person has corrected a
proposal or added an object, the model was wrong."""


@dataclass(frozen=True, slots=True)
class Target:
    """An object: its pixels, and its weight in the loss."""

    mask: CocoRle
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Example:
    """An image with its objects; ``key`` is the SHA-256 of the file in hexadecimal digits."""

    path: Path
    key: str
    size: Size
    targets: tuple[Target, ...]


@dataclass(frozen=True, slots=True)
class Parts:
    """What is trained on, what the model is measured on, and old data that is mixed in."""

    trained: tuple[Example, ...]
    held_out: tuple[Example, ...]
    replay: tuple[Example, ...] = ()
    replay_held_out: tuple[Example, ...] = ()
    weights: Mapping[str, float] = field(default_factory=dict)


def read_examples(
    records: Iterable[ImageRecord],
    folder: Path,
    weights: Mapping[str, float] = WEIGHTS,
) -> tuple[Example, ...]:
    """Read the images with objects of a data set, without groups and boxes without pixels.

    *folder* has the image files; *weights* are by origin.  Raises `TuningError` for images that are
    missing or cannot be read, and for masks of another size than their image.
    """
    found, missing = [], []
    for record in records:
        path = folder / record.file_name
        if not path.is_file():
            missing.append(record.file_name)
            continue
        example = _example(record, path, weights)
        if example.targets:
            found.append(example)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise TuningError(f"images are missing in {folder}: {missing[0]}{more}")
    return tuple(found)


def _example(record: ImageRecord, path: Path, weights: Mapping[str, float]) -> Example:
    data = path.read_bytes()
    size = Size(*_pixels(data, path).shape[:2])
    if record.size != size:
        sizes = [f"{each.width}x{each.height}" for each in (record.size, size)]
        raise TuningError(
            f"{path.name}: its masks are of {sizes[0]} pixels, the image has {sizes[1]}"
        )
    targets = []
    for index, annotation in enumerate(record.annotations):
        if annotation.segmentation is None or annotation.iscrowd:
            continue
        origin = UNKNOWN if annotation.origin is None else str(annotation.origin.value)
        mask = _mask(annotation.segmentation, record.size, f"{path.name}, annotation {index}")
        weight = weights[origin]
        if weight and len(run_lengths.intervals(mask)):
            targets.append(Target(mask, weight))
    return Example(path, hashlib.sha256(data).hexdigest(), size, tuple(targets))


def _mask(segmentation: Segmentation, size: Size, place: str) -> CocoRle:
    try:
        return pixels.to_rle(segmentation, size)
    except SamserveError as error:
        raise TuningError(f"{place}: {error}") from error


def read_pixels(example: Example) -> UInt8Array:
    """Return the image as uint8 RGB ``[h, w, 3]``.  Raises `TuningError`."""
    try:
        return _pixels(example.path.read_bytes(), example.path)
    except OSError as error:
        raise TuningError(f"{example.path} cannot be read: {error.strerror}") from error


def _pixels(data: bytes, path: Path) -> UInt8Array:
    try:
        return decode(EncodedImage(data), LIMITS)
    except SamserveError as error:
        raise TuningError(f"{path} cannot be read as an image: {error}") from error


def split(
    examples: Sequence[Example], fraction: float, seed: int, name: str = "the data set"
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Return a training part and a held-out part of about a *fraction* of the images.

    The same image is never in both; *name* is that of the data in errors.  Raises `TuningError` if
    there would be no held-out part.
    """
    if not 0 < fraction < 1:
        raise TuningError(
            f"there is no held-out part: its fraction must be between 0 and 1, not {fraction:g}"
        )
    keys = sorted({example.key for example in examples})
    if len(keys) < 2:
        raise TuningError(
            f"there is no held-out part: {len(keys)} images of {name} have objects, "
            f"at least 2 are needed"
        )
    count = max(1, round(fraction * len(keys)))
    chosen = np.random.default_rng((seed, 0)).permutation(len(keys))[:count]
    held_out = {keys[index] for index in chosen}
    return (
        tuple(example for example in examples if example.key not in held_out),
        tuple(example for example in examples if example.key in held_out),
    )


def check_parts(parts: Parts) -> None:
    """Raise `TuningError` for parts that are too small or share an image."""
    for name, examples, minimum in _demanded(parts):
        count = sum(len(example.targets) for example in examples)
        if count < minimum:
            raise TuningError(
                f"{name} is too small: {count} objects on {len(examples)} images, "
                f"at least {minimum} are needed"
            )
    keys = {example.key for example in (*parts.trained, *parts.replay)}
    for name, examples in (
        (HELD_OUT, parts.held_out),
        (REPLAY_HELD_OUT, parts.replay_held_out),
    ):
        shared = [example for example in examples if example.key in keys]
        if shared:
            raise TuningError(
                f"{len(shared)} images of {name} are also among those that are trained on, "
                f"such as {shared[0].path.name}"
            )


def _demanded(parts: Parts) -> Iterator[tuple[str, Sequence[Example], int]]:
    """Yield the parts of a run, with their names and the number of objects that they need."""
    yield HELD_OUT, parts.held_out, MIN_HELD_OUT
    yield "the training part", parts.trained, MIN_TRAINED
    # Without a held-out part of its own, a loss on old data would go unnoticed.
    if parts.replay or parts.replay_held_out:
        yield REPLAY_HELD_OUT, parts.replay_held_out, MIN_HELD_OUT
        yield "the training part of the old data", parts.replay, MIN_TRAINED
