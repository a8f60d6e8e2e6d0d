"""Common pixels of masks by run lengths, compared with dense arrays and pycocotools."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco
from samserve.core import intervals, rle, run_lengths
from samserve.core.overlap import IndexedMask
from samserve.types import BoolArray, CocoRle, Size

from tests.support.examples import examples


@st.composite
def pairs(draw: st.DrawFn) -> tuple[BoolArray, BoolArray]:
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=24))
    masks = hnp.arrays(np.bool_, shape) | st.booleans().map(lambda value: np.full(shape, value))
    return draw(masks), draw(masks)


@examples(400)
@given(pairs())
def test_common_pixels_area_and_extent_are_those_of_the_arrays(
    masks: tuple[BoolArray, BoolArray],
) -> None:
    first, second = masks
    indexed = IndexedMask.of(rle.encode(first))
    rows, columns = (np.flatnonzero(first.any(axis=axis)) for axis in (1, 0))

    assert indexed.common_pixels(run_lengths.intervals(rle.encode(second))) == (
        np.count_nonzero(first & second)
    )
    assert indexed.area == np.count_nonzero(first)
    if first.any():
        assert indexed.extent == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)


@examples(200)
@given(pairs())
def test_overlaps_are_those_of_pycocotools(masks: tuple[BoolArray, BoolArray]) -> None:
    first, second = masks
    encoded = [rle.encode(mask) for mask in masks]
    common = IndexedMask.of(encoded[1]).common_pixels(run_lengths.intervals(encoded[0]))
    union = np.count_nonzero(first | second)
    dicts = [
        {"size": [each.size.height, each.size.width], "counts": each.counts.encode()}
        for each in encoded
    ]

    assert coco.iou(dicts[:1], dicts[1:], [0])[0, 0] == (common / union if union else 0)
    if first.any():
        assert coco.iou(dicts[:1], dicts[1:], [1])[0, 0] == common / np.count_nonzero(first)


@examples(200)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.data())
def test_empty_runs_of_clients_change_nothing(runs: list[int], data: st.DataObject) -> None:
    """Valid strings may have them; the C code of pycocotools stops at some."""
    runs[0] += 1
    total, values = sum(runs), np.arange(len(runs)) % 2 == 1
    size = Size(1, total)
    mask = np.repeat(values, runs).reshape(total, 1).T
    other = data.draw(hnp.arrays(np.bool_, (1, total)))
    written = run_lengths.from_runs(size, np.array(runs, dtype=np.int64))

    assert IndexedMask.of(written).common_pixels(run_lengths.intervals(rle.encode(other))) == (
        np.count_nonzero(mask & other)
    )


def test_run_lengths_of_many_chunks_are_indexed_as_a_whole() -> None:
    mask = np.random.default_rng(0).random((700, 900)) < 0.5
    encoded = rle.encode(mask)
    assert len(encoded.counts) > 4 << 16

    found = run_lengths.intervals(encoded)

    assert np.array_equal(found, intervals.from_runs(run_lengths.runs(mask)))
    assert IndexedMask.of(encoded).area == np.count_nonzero(mask)


def test_run_lengths_that_do_not_fit_are_rejected() -> None:
    with pytest.raises(ValueError, match="sums to"):
        run_lengths.intervals(CocoRle(Size(9, 9), "5"))
