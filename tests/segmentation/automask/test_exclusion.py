"""AutoMask without what is annotated, compared with dense arrays."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from samserve.core import rle
from samserve.engines.fake import FakeEngine
from samserve.errors import InvalidRequest
from samserve.models.families import SAM1
from samserve.segmentation.automask.events import AutoMaskRecord, FilterCount
from samserve.segmentation.automask.exclusion import Exclusion
from samserve.segmentation.automask.options import AutoMaskOptions
from samserve.types import BoolArray, CocoRle, FloatArray, Size

from tests.segmentation.automask.replay import RecordingEngine, mask_of, samserve_auto_mask
from tests.support.examples import examples

IMAGE = np.zeros((120, 150, 3), np.uint8)
EVERYTHING = {
    "points_per_side": 3,
    "pred_iou_thresh": 0.0,
    "stability_score_thresh": 0.0,
    # A box IoU is never above 1.
    "box_nms_thresh": 1.0,
    "crop_nms_thresh": 1.0,
}
WAYS: dict[str, dict[str, Any]] = {
    "whole": {},
    "crops": {"crop_n_layers": 1, "crop_n_points_downscale_factor": 2},
    "small regions": {"min_mask_region_area": 60},
    "crops, small regions": {
        "crop_n_layers": 1,
        "crop_n_points_downscale_factor": 2,
        "min_mask_region_area": 60,
    },
}


class Blots(FakeEngine):
    """Draws discs with ragged edges, islands and holes, always the same ones at a point."""

    def _ellipses(self, centre_xy: FloatArray, stretch_xy: FloatArray) -> FloatArray:
        rng = np.random.default_rng(int(centre_xy[0] * 1000 + centre_xy[1]))
        coarse = rng.normal(0, 9, (16, 16)).astype(np.float32)
        noise = np.kron(coarse, np.ones((16, 16), np.float32))
        return super()._ellipses(centre_xy, stretch_xy) + noise


# Decoded once for all examples.
ENGINE = RecordingEngine(Blots())


def search(**options: Any) -> tuple[tuple[AutoMaskRecord, ...], dict[str, FilterCount]]:
    return asyncio.run(samserve_auto_mask(ENGINE, IMAGE, {**EVERYTHING, **options}))


@cache
def everything_of(way: str) -> tuple[AutoMaskRecord, ...]:
    return search(**WAYS[way])[0]


def masks_of(records: Sequence[AutoMaskRecord]) -> list[BoolArray]:
    return [mask_of(record) for record in records]


def key(record: AutoMaskRecord) -> tuple[Any, ...]:
    return (record.mask, record.point, record.crop_box)


def overlap(mask: BoolArray, excluded: BoolArray, *, parts: bool) -> float:
    """Return the IoU, or the fraction of *mask* that is inside."""
    common = np.count_nonzero(mask & excluded)
    whole = np.count_nonzero(mask if parts else mask | excluded)
    return common / whole if whole else 0.0


def remaining(
    records: Sequence[AutoMaskRecord], excluded: Sequence[BoolArray], threshold: float, parts: bool
) -> list[AutoMaskRecord]:
    """Return what stays, from arrays of the size of the image alone."""
    return [
        record
        for record in records
        if not any(overlap(mask_of(record), each, parts=parts) > threshold for each in excluded)
    ]


@st.composite
def excluded_masks(draw: st.DrawFn, found: Sequence[BoolArray]) -> list[BoolArray]:
    """Return masks that are found, altered, or drawn anywhere."""
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    masks = []
    for _ in range(draw(st.integers(1, 6))):
        mask = found[rng.integers(len(found))].copy()
        kind = draw(st.sampled_from(["same", "shifted", "noise", "box", "empty", "everything"]))
        if kind == "shifted":
            mask = np.roll(mask, tuple(rng.integers(-25, 25, 2)), axis=(0, 1))
        elif kind == "noise":
            mask ^= rng.random(mask.shape) < rng.random() / 2
        elif kind in ("box", "empty", "everything"):
            mask[:] = kind == "everything"
        if kind == "box":
            (top, bottom), (left, right) = (
                np.sort(rng.integers(0, side, 2)) for side in (120, 150)
            )
            mask[top : bottom + 1, left : right + 1] = True
        masks.append(mask)
    return masks


@pytest.mark.parametrize("way", WAYS)
@examples(30)
@given(data=st.data(), threshold=st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]), parts=st.booleans())
def test_masks_that_stay_are_those_of_dense_arrays(
    way: str, data: st.DataObject, threshold: float, parts: bool
) -> None:
    everything = everything_of(way)
    excluded = data.draw(excluded_masks(masks_of(everything)))
    options = {"exclude_iou_thresh": threshold, "exclude_parts": parts}

    records, counts = search(exclude=tuple(map(rle.encode, excluded)), **options, **WAYS[way])

    assert not remaining_differs(records, everything, excluded, threshold, parts, way)
    assert counts["exclude"].count_in == counts["crop_edge"].count_out
    assert counts["exclude"].count_out == counts["box_nms"].count_in


def remaining_differs(
    records: Sequence[AutoMaskRecord],
    everything: Sequence[AutoMaskRecord],
    excluded: Sequence[BoolArray],
    threshold: float,
    parts: bool,
    way: str,
) -> str:
    """Return how the records differ from what stays of everything; empty if they do not."""
    if len(remaining(records, excluded, threshold, parts)) != len(records):
        return "an excluded mask has returned"
    expected = remaining(everything, excluded, threshold, parts)
    if "small regions" not in way:
        return "" if list(map(key, records)) == list(map(key, expected)) else "other masks"
    # The masks before the removal of small regions are compared too, so that others may be missing.
    known = {each.mask.segmentation for each in expected}
    return "" if all(each.mask.segmentation in known for each in records) else "other masks"


def disc(x: float, y: float, radius: float) -> BoolArray:
    rows, columns = np.mgrid[:120, :150]
    return np.asarray(np.hypot(columns - x, rows - y) < radius)


def test_nothing_to_exclude_changes_nothing() -> None:
    options = {"box_nms_thresh": 0.7, "max_masks": 9}
    records, counts = search(**options)
    same, others = search(exclude=(), exclude_iou_thresh=0.2, exclude_parts=True, **options)

    assert list(map(key, same)) == list(map(key, records))
    assert (others, "exclude" in others) == (counts, False)


def test_a_mask_exactly_at_the_threshold_stays() -> None:
    (first, *_), _ = search(max_masks=1)
    mask = mask_of(first)
    inside = np.flatnonzero(mask)
    kept = len(inside) * 2 // 3
    part = np.zeros_like(mask)
    part.flat[inside[:kept]] = True
    exact = kept / len(inside)

    for threshold, stays in ((exact, True), (np.nextafter(exact, 0), False)):
        records, _ = search(exclude=(rle.encode(part),), exclude_iou_thresh=float(threshold))
        assert (key(first) in [key(each) for each in records]) == stays


def test_iou_of_seven_tenths_is_not_above_the_default_threshold() -> None:
    (first, *_), _ = search(max_masks=1)
    mask = mask_of(first)
    inside, outside = np.flatnonzero(mask), np.flatnonzero(~mask)
    # IoU = a / (area + b) for a of its pixels and b others.
    area = len(inside)
    b = next(b for b in range(10) if (area + b) % 10 == 0)
    excluded = np.zeros_like(mask)
    excluded.flat[inside[: (area + b) * 7 // 10]] = True
    excluded.flat[outside[:b]] = True
    assert overlap(mask, excluded, parts=False) == 0.7

    stays, _ = search(exclude=(rle.encode(excluded),))
    excluded.flat[inside[(area + b) * 7 // 10]] = True
    goes, _ = search(exclude=(rle.encode(excluded),))

    assert key(first) in [key(each) for each in stays]
    assert key(first) not in [key(each) for each in goes]


def test_parts_of_an_excluded_mask_stay_unless_they_are_excluded_too() -> None:
    grid = np.array([[0.5, 0.5]])
    everything, _ = search(points_per_side=1, point_grids=(grid,))
    sizes = sorted(each.mask.area for each in everything)
    largest = next(each for each in everything if each.mask.area == sizes[-1])
    excluded = (largest.mask.segmentation,)
    assert len(sizes) == 3
    assert sizes[1] < 0.7 * sizes[2]

    parts, _ = search(point_grids=(grid,), exclude=excluded)
    nothing, _ = search(point_grids=(grid,), exclude=excluded, exclude_parts=True)
    containing, _ = search(
        point_grids=(grid,), exclude=(everything[0].mask.segmentation,), exclude_parts=True
    )

    assert sorted(each.mask.area for each in parts) == sizes[:2]
    assert nothing == ()
    assert largest.mask.area in [each.mask.area for each in containing]


def test_masks_that_an_excluded_one_has_suppressed_are_found() -> None:
    options = {"points_per_side": 6, "box_nms_thresh": 0.5}
    first, _ = search(**options)
    second, counts = search(exclude=found(first), **options)
    everything, _ = search(points_per_side=6)

    assert counts["exclude"].count_out < counts["exclude"].count_in
    # They were among the candidates, and overlapped an excluded mask of higher predicted IoU.
    assert len(second) > 0
    assert {key(each) for each in second} <= {key(each) for each in everything}
    assert not {key(each) for each in second} & {key(each) for each in first}


def test_other_masks_fill_the_number_of_masks() -> None:
    best, _ = search(max_masks=5)
    others, _ = search(max_masks=5, exclude=found(best))

    assert len(best) == len(others) == 5
    assert remaining(others, masks_of(best), 0.7, False) == list(others)
    assert max(each.mask.predicted_iou for each in others) <= best[0].mask.predicted_iou


def test_passes_that_exclude_the_former_ones_end() -> None:
    known: tuple[AutoMaskRecord, ...] = ()
    while True:
        more, _ = search(max_masks=7, exclude=found(known))
        if not more:
            break
        assert remaining(more, masks_of(known), 0.7, False) == list(more)
        known += more
    everything, _ = search()

    # Every mask of a single pass is one of them, or nearly so.
    assert remaining(everything, masks_of(known), 0.7, False) == []
    assert len(known) > 14


def found(records: Sequence[AutoMaskRecord]) -> tuple[CocoRle, ...]:
    return tuple(rle.encode(mask_of(record)) for record in records)


def test_a_mask_without_its_islands_is_compared_again() -> None:
    options = {"min_mask_region_area": 400}
    everything, _ = search(**options)
    raw, _ = search()
    before = {each.point: [] for each in raw}
    for each in raw:
        before[each.point].append(mask_of(each))
    # One that is not above the threshold before its islands are removed.
    cleaned, least = min(
        (
            (each, max(overlap(mask, mask_of(each), parts=False) for mask in before[each.point]))
            for each in everything
        ),
        key=lambda pair: pair[1],
    )
    assert least < 0.97
    threshold = (least + 1) / 2

    records, counts = search(exclude=found([cleaned]), exclude_iou_thresh=threshold, **options)

    assert counts["exclude"].count_in == counts["exclude"].count_out
    assert counts["small_regions"].count_in > counts["small_regions"].count_out
    assert remaining(records, [mask_of(cleaned)], threshold, False) == list(records)


def test_masks_of_another_size_are_rejected_before_any_inference() -> None:
    engine = FakeEngine()
    wrong = CocoRle(Size(120, 149), rle.encode(np.zeros((120, 149), np.bool_)).counts)
    right = rle.encode(disc(50, 50, 9))

    with pytest.raises(InvalidRequest) as raised:
        asyncio.run(samserve_auto_mask(engine, IMAGE, {"exclude": (right, wrong, right)}))

    assert raised.value.violations[0].field == "options.exclude[1].size"
    assert "120x150" in str(raised.value)
    assert engine.counts["encode_begun"] == 0


def test_memory_is_that_of_the_run_lengths() -> None:
    rows, columns = np.ogrid[:3000, :4000]
    encoded = rle.encode((columns - 2000) ** 2 + (rows - 1500) ** 2 < 900**2)
    options = AutoMaskOptions.of(SAM1, {"exclude": (encoded,) * 300})
    tracemalloc.start()
    exclusion = Exclusion.of(options)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert len(exclusion.masks) == 300
    # A mask as pixels has 12 MB.
    assert peak < 12e6


def test_empty_masks_exclude_nothing() -> None:
    empty = rle.encode(np.zeros((120, 150), np.bool_))
    records, counts = search(exclude=(empty,), exclude_iou_thresh=0.0)

    assert list(map(key, records)) == list(map(key, search()[0]))
    assert counts["exclude"].count_in == counts["exclude"].count_out
