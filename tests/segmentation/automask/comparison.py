"""Records of the product held against those of the original generator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from samserve.segmentation.automask.events import AutoMaskRecord

from tests.oracle.generator import FilterCounts
from tests.segmentation.automask.replay import mask_of


def differences(records: tuple[AutoMaskRecord, ...], expected: list[dict[str, Any]]) -> list[str]:
    """List everything in which the product's records differ from the original's."""
    found = []
    if len(records) != len(expected):
        found.append(f"{len(records)} masks instead of {len(expected)}")
    for index, (ours, theirs) in enumerate(zip(records, expected, strict=False)):
        found += [f"mask {index}: {text}" for text in _record_differences(ours, theirs)]
    return found


def _record_differences(ours: AutoMaskRecord, theirs: dict[str, Any]) -> Iterator[str]:
    pixels = np.count_nonzero(mask_of(ours) != theirs["segmentation"])
    # Two-step upsampling in another order of operations may flip a pixel that lies at 0.
    if pixels > 1:
        yield f"{pixels} pixels differ"
    if abs(ours.mask.area - theirs["area"]) > 1:
        yield f"area {ours.mask.area} instead of {theirs['area']}"
    if not np.allclose(ours.mask.bbox, theirs["bbox"], atol=1 if pixels else 0):
        yield f"bbox {ours.mask.bbox} instead of {theirs['bbox']}"
    for name, value in (
        ("predicted_iou", ours.mask.predicted_iou),
        ("stability_score", ours.mask.stability_score),
    ):
        if abs(value - theirs[name]) > 1e-4:
            yield f"{name} {value} instead of {theirs[name]}"
    if not np.allclose(ours.point, theirs["point_coords"][0], atol=1e-9):
        yield f"point {ours.point} instead of {theirs['point_coords']}"
    if list(ours.crop_box) != list(theirs["crop_box"]):
        yield f"crop box {ours.crop_box} instead of {theirs['crop_box']}"


def kept_by(counts: FilterCounts) -> dict[str, int]:
    """Say what each filter of the original kept, by the product's names."""
    return {
        "pred_iou": counts.after_pred_iou,
        "stability_score": counts.after_stability,
        "crop_edge": counts.after_crop_edge,
        "box_nms": counts.after_box_nms,
        "crop_nms": counts.after_crop_nms,
        "small_regions": counts.after_small_regions,
    }
