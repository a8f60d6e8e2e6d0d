"""Intervals against arrays, and against pycocotools."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco
from samserve.core import intervals, rle
from samserve.core.intervals import Window
from samserve.types import BoolArray, CocoRle, Size

sizes = st.tuples(st.integers(1, 12), st.integers(1, 12))
masks = sizes.flatmap(lambda size: arrays.arrays(np.bool_, size))
pairs = sizes.flatmap(
    lambda size: st.tuples(arrays.arrays(np.bool_, size), arrays.arrays(np.bool_, size))
)


def size_of(mask: BoolArray) -> Size:
    return Size(*mask.shape)


@given(masks)
def test_intervals_have_the_run_lengths_of_the_mask(mask: BoolArray) -> None:
    found = intervals.from_rle(rle.encode(mask))

    assert (found == intervals.from_mask(mask)).all()
    assert intervals.to_rle(found, size_of(mask)) == rle.encode(mask)
    assert intervals.area(found) == mask.sum()
    positions = np.arange(mask.size)
    assert (intervals.contains(found, positions) == mask.T.reshape(-1)).all()


@given(pairs)
def test_union_and_intersection_are_those_of_pycocotools(
    pair: tuple[BoolArray, BoolArray],
) -> None:
    first, second = (intervals.from_mask(mask) for mask in pair)
    size = size_of(pair[0])
    packed = [coco.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in pair]

    merged = coco.merge(packed)["counts"].decode()
    assert intervals.to_rle(intervals.union([first, second]), size) == CocoRle(size, merged)
    common = int(coco.area(coco.merge(packed, intersect=True)))
    assert intervals.intersection(first, second) == common


@given(masks, st.data())
def test_a_window_has_the_pixels_of_the_array(mask: BoolArray, data: st.DataObject) -> None:
    height, width = mask.shape
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    right, bottom = data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height))
    window: Window = (left, top, right, bottom)
    found = intervals.from_mask(mask)
    expected = np.zeros_like(mask)
    expected[top:bottom, left:right] = mask[top:bottom, left:right]

    clipped = intervals.clipped(found, height, window)
    assert intervals.to_rle(clipped, size_of(mask)) == rle.encode(expected)
    assert (intervals.dense(found, height, window) == mask[top:bottom, left:right]).all()


@given(masks, st.integers(0, 5), st.integers(0, 5), st.integers(0, 3))
def test_a_part_is_placed_in_its_image(mask: BoolArray, left: int, top: int, rest: int) -> None:
    image = Size(mask.shape[0] + top + rest, mask.shape[1] + left + rest)
    expected = np.zeros((image.height, image.width), dtype=np.bool_)
    expected[top : top + mask.shape[0], left : left + mask.shape[1]] = mask

    placed = intervals.shifted(intervals.from_mask(mask), size_of(mask), left, top, image)

    assert intervals.to_rle(placed, image) == rle.encode(expected)
    extent = intervals.extent(placed, image.height)
    rows, columns = np.nonzero(expected)
    if rows.size:
        assert extent == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    else:
        assert extent == (0, 0, 0, 0)


def test_masks_of_two_gigapixels_need_the_memory_of_their_runs() -> None:
    image = Size(46340, 46340)
    square = intervals.from_mask(np.ones((200, 300), dtype=np.bool_))

    corner = intervals.shifted(square, Size(200, 300), 46040, 46140, image)

    assert corner.shape == (300, 2)
    assert intervals.from_rle(intervals.to_rle(corner, image)).tolist() == corner.tolist()
    assert corner[-1, 1] == image.pixels
