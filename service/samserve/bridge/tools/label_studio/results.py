"""Masks as regions of Label Studio: brush strokes or polygons of a label, in percent."""

from __future__ import annotations

from collections.abc import Iterator

from samserve.client import Catalog, Mask, MaskFormat
from samserve.datasets.label_studio import regions
from samserve.datasets.label_studio.label_config import Control
from samserve.datasets.label_studio.regions import MIN_CORNERS, Json, Place
from samserve.types import CocoRle, Size

_MASK_FORMATS: dict[str, MaskFormat] = {"brushlabels": "coco_rle", "polygonlabels": "polygons"}


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
        regions.region(
            value,
            size,
            place,
            region_id if index == 0 else f"{region_id}-{index}",
            mask.predicted_iou,
        )
        for index, value in enumerate(values)
    ]


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
        yield regions.brush(CocoRle(size, mask.counts))


def _polygon(mask: Mask, size: Size) -> Iterator[Json]:
    assert mask.polygons is not None, "the mask format is `polygons`"
    for part in mask.polygons.parts:
        if len(part.exterior) >= MIN_CORNERS:
            yield regions.polygon(part.exterior, size)


_VALUES = {"brushlabels": _brush, "polygonlabels": _polygon}
