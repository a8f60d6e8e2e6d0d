"""AutoMask with every family in the whole service, against the original generators.

The service runs the ONNX files; the originals run their own networks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from samserve.v1 import samserve_pb2 as pb

from tests.families.predicting import PHOTOS, Served, mask_of
from tests.sample_images import encode

# One server for all tests of a family.
pytestmark = pytest.mark.asyncio(loop_scope="module")

AUTOMASK: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "whole": ("larger than the frame", {"points_per_side": 10}, ("sam2", "sam_hq")),
    "wide, crops": (
        "wide",
        {"points_per_side": 10, "crop_n_layers": 1, "crop_n_points_downscale_factor": 2},
        ("sam2", "sam_hq"),
    ),
    "one mask": (
        "larger than the frame",
        {
            "points_per_side": 12,
            "multimask_output": False,
            "pred_iou_thresh": 0.6,
            "stability_score_thresh": 0.9,
            "box_nms_thresh": 0.9,
        },
        ("sam2", "sam_hq"),
    ),
    "refined, crops": (
        "larger than the frame",
        {
            "points_per_side": 6,
            "crop_n_layers": 1,
            "crop_n_points_downscale_factor": 2,
            "use_m2m": True,
        },
        ("sam2",),
    ),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name != "whole")) for name in AUTOMASK],
)
async def test_automask_returns_the_masks_of_the_original_generator(
    name: str, served: Served
) -> None:
    photo_name, options, supported = AUTOMASK[name]
    if served.family.name not in supported:
        return
    photo = PHOTOS[photo_name]()
    expected = [record["segmentation"] for record in served.reference.auto_mask(photo, **options)]

    request = pb.AutoMaskRequest(
        image=pb.Image(encoded=encode(photo)), options=pb.AutoMaskOptions(**options)
    )
    events = [event async for event in served.stub.AutoMask(request)]

    actual = [mask_of(record.mask) for event in events for record in event.masks.records]
    assert min(len(actual), len(expected)) >= 20
    assert abs(len(actual) - len(expected)) <= 0.02 * len(expected)
    assert matched_iou(actual, expected) >= 0.99


async def test_masks_that_are_excluded_do_not_return(served: Served) -> None:
    photo = PHOTOS["wide"]()
    image, options = pb.Image(encoded=encode(photo)), {"points_per_side": 5, "pred_iou_thresh": 0.3}

    first = await records_of(served, image, pb.AutoMaskOptions(**options))  # type: ignore[arg-type]
    excluded = [record.mask.coco_rle for record in first]
    again = pb.AutoMaskOptions(**options, exclude=excluded)  # type: ignore[arg-type]
    second = await records_of(served, image, again)

    assert len(first) > 3
    known = np.stack([mask_of(record.mask) for record in first])
    for record in second:
        mask = mask_of(record.mask)
        common, union = ((known & mask).sum((1, 2)), (known | mask).sum((1, 2)))
        assert (common / union).max() <= 0.7


async def records_of(
    served: Served, image: pb.Image, options: pb.AutoMaskOptions
) -> list[pb.AutoMaskRecord]:
    request = pb.AutoMaskRequest(image=image, options=options)
    return [
        record async for event in served.stub.AutoMask(request) for record in event.masks.records
    ]


def matched_iou(actual: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """Return the lowest IoU of a mask with its most similar one of the other list, both ways."""
    ours, theirs = (np.stack(masks).reshape(len(masks), -1) for masks in (actual, expected))
    ours, theirs = ours.astype(np.float32), theirs.astype(np.float32)
    common = ours @ theirs.T
    iou = common / (ours.sum(1)[:, None] + theirs.sum(1) - common)
    return float(min(iou.max(0).min(), iou.max(1).min()))
