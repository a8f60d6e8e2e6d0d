"""Masks, polygons and boxes as regions of Label Studio, whose coordinates are in percent."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from samserve.datasets.label_studio import rle
from samserve.datasets.label_studio.label_config import Control
from samserve.datasets.types import Xywh
from samserve.types import Array, CocoRle, Size

Json = dict[str, Any]

MIN_CORNERS = 3
PERCENT = 100.0
DIGITS = 5
"""Decimals of a percentage: a thousandth of a pixel in an image of 20,000."""
_ID_CHARACTERS = 10


@dataclass(frozen=True, slots=True)
class Place:
    """Where a mask belongs in a task: its control, label, and the number of the image in a list."""

    control: Control
    label: str
    item: int | None = None


def brush(mask: CocoRle) -> Json:
    """Return the value of a brush stroke; see `rle.encode` for the errors."""
    return {"format": "rle", "rle": rle.encode(mask)}


def polygon(corners: Array, size: Size) -> Json:
    """Return the value of a polygon: *corners* are ``[n, 2]``, x and y in image pixels."""
    percent = np.asarray(corners, dtype=np.float64) * _scale(size)
    return {"points": np.round(percent, DIGITS).tolist(), "closed": True}


def rectangle(box: Xywh, size: Size) -> Json:
    """Return the value of a box in image pixels."""
    percent = np.array(box).reshape(2, 2) * _scale(size)
    x, y, width, height = np.round(percent, DIGITS).reshape(-1).tolist()
    return {"x": x, "y": y, "width": width, "height": height, "rotation": 0}


def region(value: Json, size: Size, place: Place, region_id: str, score: float | None) -> Json:
    """Return the region of a value, which fits the kind of the control."""
    control = place.control
    made = {
        "id": region_id,
        "type": control.kind,
        "from_name": control.name,
        "to_name": control.image,
        "original_width": size.width,
        "original_height": size.height,
        "image_rotation": 0,
        "value": {**value, control.kind: [place.label] if place.label else []},
    }
    if score is not None:
        # The estimate of an IoU may be above 1, which Label Studio refuses.
        made["score"] = round(min(max(score, 0.0), 1.0), DIGITS)
    return made if place.item is None else {**made, "item_index": place.item}


def prediction(regions: Sequence[Json], model_version: str) -> Json:
    """Return a prediction of regions, whose score is the lowest of theirs, 0 without any."""
    score = min((each["score"] for each in regions if "score" in each), default=0.0)
    return {"result": list(regions), "score": score, "model_version": model_version}


def identifier(seed: str) -> str:
    """Return an id of a region, the same for the same seed."""
    return hashlib.sha256(seed.encode("utf-8", "replace")).hexdigest()[:_ID_CHARACTERS]


def _scale(size: Size) -> Array:
    return PERCENT / np.array([size.width, size.height])
