"""Annotating by AutoMask: everything in an image, from a grid of points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from samserve.annotate.gateways import Gateways
from samserve.annotate.types import LoadedImage, Segmented
from samserve.client import AutoMaskOptions, AutoMaskRecord, Model
from samserve.datasets.types import Annotation
from samserve.types import CocoRle, Size


@dataclass(frozen=True, slots=True)
class AutoMaskSegmenter:
    """Segments everything with one model; ``options`` are those of `Client.automask`.

    ``defaults`` are the model's, `Model.automask_defaults`: other defaults give other masks.
    """

    model: str
    options: AutoMaskOptions = field(default_factory=AutoMaskOptions)
    defaults: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Model, options: AutoMaskOptions) -> AutoMaskSegmenter:
        """Return the segmenter of a served model."""
        return cls(model.name, options, dict(model.automask_defaults))

    @property
    def windowed(self) -> bool:
        """False: an image is sent as a whole."""
        return False

    def fingerprint(self, name: str) -> Mapping[str, Any]:
        """Return all options, the same for every image."""
        # How many points are decoded at once does not change the masks.
        resolved = {**self.defaults, **self.options}
        resolved.pop("points_per_batch", None)
        return {"method": "automask", "options": {key: _json(resolved[key]) for key in resolved}}

    async def segment(self, gateways: Gateways, image: LoadedImage) -> Segmented:
        """Return the masks of an image, in the order of the reference generator."""
        data = image.data
        assert data is not None, "as it is not windowed"
        result = await gateways.call(
            lambda client: client.automask_all(
                data, model=self.model, mask_format="coco_rle", **self.options
            )
        )
        return Segmented(
            Size(*result.summary.embedding.image_size),
            annotations_of(result.records),
        )


def annotations_of(records: Sequence[AutoMaskRecord]) -> tuple[Annotation, ...]:
    """Return the masks of AutoMask as annotations, with run lengths and without ids."""
    return tuple(
        Annotation(
            CocoRle(Size(*record.mask.size), record.mask.counts),
            area=record.mask.area,
            box=record.mask.bbox,
            predicted_iou=record.mask.predicted_iou,
            stability_score=record.mask.stability_score,
            point_coords=(record.point,),
            crop_box=record.crop_box,
        )
        for record in records
    )


def _json(value: Any) -> Any:
    """Return an option as a JSON value; numbers that are equal become equal texts."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_json(each) for each in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
