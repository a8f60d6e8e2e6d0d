"""Prompts and options to protobuf."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy as np
import numpy.typing as npt

from samserve.core import rle
from samserve.v1 import samserve_pb2 as pb

Multimask = Literal["auto", "all", "single"]
"""``auto``: one mask by the reference's rule; ``all``: three candidates; ``single``: token 0."""

PointLike = tuple[float, float] | tuple[float, float, int]
BoxLike = tuple[float, float, float, float]

_MULTIMASKS = {
    "auto": pb.MULTIMASK_AUTO,
    "all": pb.MULTIMASK_ALL,
    "single": pb.MULTIMASK_SINGLE,
}
_LABELS = {0: pb.Point.LABEL_BACKGROUND, 1: pb.Point.LABEL_FOREGROUND}


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """One object to segment: points, box and mask in any combination, at least one of them.

    ``points`` are ``(x, y)`` for a click on the object, or ``(x, y, label)`` with label 1 on the
    object and 0 not on it; ``box`` is ``(x0, y0, x1, y1)``; all in pixels of the image.  ``mask``
    is bool ``[h, w]`` over the whole image, or float32 low-res logits of an earlier answer
    (`Mask.low_res_logits`).
    """

    points: Sequence[PointLike] = ()
    box: BoxLike | None = None
    mask: npt.NDArray[Any] | None = None


class AutoMaskOptions(TypedDict, total=False):
    """Options of ``automask`` by the names of the reference generator.

    What is left out takes the server's default (`Catalog.automask_defaults`).  ``point_grids``
    are float ``[k, 2]`` in 0..1, one for each layer; ``region_of_interest`` is
    ``(x0, y0, x1, y1)`` in pixels of the image.
    """

    points_per_side: int
    points_per_batch: int
    pred_iou_thresh: float
    stability_score_thresh: float
    stability_score_offset: float
    box_nms_thresh: float
    crop_n_layers: int
    crop_nms_thresh: float
    crop_overlap_ratio: float
    crop_n_points_downscale_factor: int
    point_grids: Sequence[npt.NDArray[Any]]
    min_mask_region_area: int
    region_of_interest: BoxLike
    max_masks: int


def prompt_message(prompt: Prompt) -> pb.Prompt:
    """Write a prompt.  Raises ``ValueError`` for one that no message can say."""
    return pb.Prompt(
        points=[_point(point) for point in prompt.points],
        box=None if prompt.box is None else _box(prompt.box),
        mask=None if prompt.mask is None else _mask(prompt.mask),
    )


def multimask_value(multimask: Multimask) -> pb.Multimask.ValueType:
    """Write which candidates are wanted."""
    if multimask not in _MULTIMASKS:
        raise ValueError(f"multimask must be 'auto', 'all' or 'single', got {multimask!r}")
    return _MULTIMASKS[multimask]


def durability_value(durable: bool) -> pb.Durability.ValueType:
    """Write what an embedding has to survive."""
    return pb.DURABILITY_DURABLE if durable else pb.DURABILITY_UNSPECIFIED


def automask_message(options: AutoMaskOptions) -> pb.AutoMaskOptions:
    """Write AutoMask options.  Raises ``TypeError`` for an unknown name."""
    unknown = sorted(set(options) - set(pb.AutoMaskOptions.DESCRIPTOR.fields_by_name))
    if unknown:
        raise TypeError(f"no such AutoMask option: {', '.join(unknown)}")
    values: dict[str, Any] = dict(options)
    region = values.pop("region_of_interest", None)
    grids = values.pop("point_grids", ())
    return pb.AutoMaskOptions(
        **values,
        region_of_interest=None if region is None else _box(region),
        point_grids=[_grid(grid) for grid in grids],
    )


def output_mode_value(*, pixels: bool) -> pb.OutputMode.ValueType:
    """Choose how masks are to be written."""
    return pb.OUTPUT_MODE_COCO_RLE if pixels else pb.OUTPUT_MODE_LOW_RES_LOGITS


def _point(point: PointLike) -> pb.Point:
    x, y, label = point if len(point) == 3 else (*point, 1)
    if label not in _LABELS:
        raise ValueError(f"the label of a point must be 1 (on the object) or 0, got {label!r}")
    return pb.Point(x=x, y=y, label=_LABELS[label])


def _box(box: BoxLike) -> pb.Box:
    x_min, y_min, x_max, y_max = box
    return pb.Box(x_min=x_min, y_min=y_min, x_max=x_max, y_max=y_max)


def _mask(mask: npt.NDArray[Any]) -> pb.MaskInput:
    if mask.ndim == 2 and mask.dtype == np.bool_:
        coco = rle.encode(mask)
        size = pb.ImageSize(height=coco.size.height, width=coco.size.width)
        return pb.MaskInput(binary=pb.CocoRle(size=size, counts=coco.counts))
    if mask.ndim == 2 and mask.dtype == np.float32:
        return pb.MaskInput(low_res_logits=mask.astype("<f4").tobytes())
    raise ValueError(
        "a mask must be bool [h, w] of the image's size or float32 low-res logits, "
        f"got {mask.dtype} {list(mask.shape)}"
    )


def _grid(grid: npt.NDArray[Any]) -> pb.PointGrid:
    return pb.PointGrid(points=[pb.NormalizedPoint(x=x, y=y) for x, y in np.asarray(grid)])
