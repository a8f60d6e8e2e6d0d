"""Comparison of AutoMask records with those of the reference generator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from samserve.segmentation.automask.events import AutoMaskRecord

from tests.oracle.generator import FilterCounts
from tests.segmentation.automask.replay import mask_of


def differences(
    records: tuple[AutoMaskRecord, ...], expected: list[dict[str, Any]], *, pixels: int = 1
) -> list[str]:
    """Return all differences of samserve's records from the reference's.

    Up to *pixels* of a mask may differ: operations in another order may flip one whose logit is 0.
    """
    found = []
    if len(records) != len(expected):
        found.append(f"{len(records)} masks instead of {len(expected)}")
    for index, (record, reference) in enumerate(zip(records, expected, strict=False)):
        found += [
            f"mask {index}: {text}" for text in _record_differences(record, reference, pixels)
        ]
    return found


def _record_differences(
    actual: AutoMaskRecord, expected: dict[str, Any], allowed: int
) -> Iterator[str]:
    pixels = np.count_nonzero(mask_of(actual) != expected["segmentation"])
    if pixels > allowed:
        yield f"{pixels} pixels differ"
    if abs(actual.mask.area - expected["area"]) > allowed:
        yield f"area {actual.mask.area} instead of {expected['area']}"
    if not np.allclose(actual.mask.bbox, expected["bbox"], atol=1 if pixels else 0):
        yield f"bbox {actual.mask.bbox} instead of {expected['bbox']}"
    # Pixels may be on the other side of either threshold of the stability.
    flipped = (allowed - 1) / max(expected["area"], 1)
    for name, value, bound in (
        ("predicted_iou", actual.mask.predicted_iou, 1e-4),
        ("stability_score", actual.mask.stability_score, max(1e-4, flipped)),
    ):
        if abs(value - expected[name]) > bound:
            yield f"{name} {value} instead of {expected[name]}"
    # SAM 2's generator keeps points in float32.
    if not np.allclose(actual.point, expected["point_coords"][0], rtol=1e-7, atol=1e-9):
        yield f"point {actual.point} instead of {expected['point_coords']}"
    if list(actual.crop_box) != list(expected["crop_box"]):
        yield f"crop box {actual.crop_box} instead of {expected['crop_box']}"


def counts_out(counts: FilterCounts) -> dict[str, int]:
    """Return what each filter of the reference kept, by samserve's names."""
    return {
        "pred_iou": counts.after_pred_iou,
        "stability_score": counts.after_stability,
        "crop_edge": counts.after_crop_edge,
        "box_nms": counts.after_box_nms,
        "crop_nms": counts.after_crop_nms,
        "small_regions": counts.after_small_regions,
    }
