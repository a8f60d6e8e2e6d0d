"""Masks as regions of Label Studio: brush strokes or polygons of a label, in percent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from samserve.bridge.tools.label_studio import rle
from samserve.bridge.tools.label_studio.label_config import Control
from samserve.client import Catalog, Mask, MaskFormat
from samserve.types import CocoRle, Size

Json = dict[str, Any]

_MASK_FORMATS: dict[str, MaskFormat] = {"brushlabels": "coco_rle", "polygonlabels": "polygons"}
_MIN_CORNERS = 3
_DIGITS = 5


@dataclass(frozen=True, slots=True)
class Place:
    """Where a mask belongs in a task: its control, label, and the number of the image in a list."""

    control: Control
    label: str
    item: int | None = None


def mask_format(control: Control) -> MaskFormat:
    """Return the mask format that the regions of a control are made of."""
    return _MASK_FORMATS[control.kind]


def of_mask(mask: Mask, size: Size, place: Place, region_id: str) -> list[Json]:
    """Return the regions of a mask, which has `mask_format`; none for an empty mask.

    A polygon has no holes in Label Studio, and each part of a mask is a region of its own: the
    first has the id *region_id*, and the others one that begins with it.
    """
    values = _VALUES[place.control.kind](mask, size)
    return [
        _region(value, mask, size, place, region_id if index == 0 else f"{region_id}-{index}")
        for index, value in enumerate(values)
    ]


def prediction(regions: Sequence[Json], model_version: str) -> Json:
    """Return a prediction of regions, whose score is the lowest of theirs, 0 without any."""
    score = min((each["score"] for each in regions), default=0.0)
    return {"result": list(regions), "score": score, "model_version": model_version}


def model_version(catalog: Catalog, name: str = "") -> str:
    """Return the version of a served model: its name, and the beginning of its weights' digest.

    An empty name is the default model; one that is not served is returned as it is.
    """
    for model in catalog.models:
        if model.name == name or (not name and model.default):
            return f"{model.name} {model.digest[:8]}".strip()
    return name


def _brush(mask: Mask, size: Size) -> Iterator[Json]:
    if mask.area:
        yield {"format": "rle", "rle": rle.encode(CocoRle(size, mask.counts))}


def _polygon(mask: Mask, size: Size) -> Iterator[Json]:
    assert mask.polygons is not None, "the mask format is `polygons`"
    scale = 100.0 / np.array([size.width, size.height])
    for part in mask.polygons.parts:
        if len(part.exterior) >= _MIN_CORNERS:
            yield {"points": np.round(part.exterior * scale, _DIGITS).tolist(), "closed": True}


_VALUES = {"brushlabels": _brush, "polygonlabels": _polygon}


def _region(value: Json, mask: Mask, size: Size, place: Place, region_id: str) -> Json:
    control = place.control
    labels = [place.label] if place.label else []
    region = {
        "id": region_id,
        "type": control.kind,
        "from_name": control.name,
        "to_name": control.image,
        "original_width": size.width,
        "original_height": size.height,
        "image_rotation": 0,
        "value": {**value, control.kind: labels},
        # The estimate of an IoU may be above 1, which Label Studio refuses.
        "score": round(min(max(mask.predicted_iou, 0.0), 1.0), _DIGITS),
    }
    return region if place.item is None else {**region, "item_index": place.item}
