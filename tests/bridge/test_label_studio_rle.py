"""Label Studio's run lengths; `tests/tools/label_studio` has them read by its SDK and its page."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from samserve.bridge.tools.label_studio import rle
from samserve.core import run_lengths
from samserve.types import CocoRle, Size

from tests.bridge.label_studio import decoded
from tests.support.examples import examples


def encoded(mask: np.ndarray) -> list[int]:
    return rle.encode(run_lengths.encode(mask))


def assert_same(mask: np.ndarray) -> None:
    expected = np.repeat(mask[:, :, None] * np.uint8(255), 4, axis=2)
    np.testing.assert_array_equal(decoded(encoded(mask), *mask.shape), expected)


@given(arrays.arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12))))
@examples(400)
def test_decoding_returns_the_mask_in_every_channel(mask: np.ndarray) -> None:
    assert_same(mask)


@pytest.mark.parametrize("width", [1, 4, 5, 64, 65, 1024, 1025, 16384, 16385, 40000])
@pytest.mark.parametrize("inverted", [False, True])
def test_runs_of_every_width_are_decoded(width: int, inverted: bool) -> None:
    mask = np.zeros((3, width + 7), bool)
    mask[1, 3 : 3 + width] = True

    assert_same(mask ^ inverted)


def test_objects_that_fill_columns_rows_or_the_image_are_decoded() -> None:
    for rows, columns in [(np.s_[:], np.s_[2:4]), (np.s_[1:3], np.s_[:]), (np.s_[:], np.s_[:])]:
        mask = np.zeros((5, 6), bool)
        mask[rows, columns] = True
        assert_same(mask)


@given(arrays.arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9))))
@examples(200)
def test_row_runs_begin_with_background_and_sum_to_the_size(mask: np.ndarray) -> None:
    size = Size(*mask.shape)

    rows = rle.row_runs(run_lengths.runs(mask), size)

    assert rows.sum() == size.pixels
    assert (rows[1:] > 0).all()
    values = np.repeat(np.arange(rows.size) % 2 == 1, rows)
    np.testing.assert_array_equal(values.reshape(mask.shape), mask)


def test_large_mask_takes_bytes_for_its_outline_only() -> None:
    mask = np.zeros((3000, 4000), bool)
    mask[500:2500, 500:3500] = True

    assert len(encoded(mask)) < 3000 * 8


def test_mask_beyond_the_format_is_refused() -> None:
    with pytest.raises(ValueError, match="is over"):
        rle.encode(CocoRle(Size(1 << 15, 1 << 15), "0"))


def test_run_lengths_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="sums to"):
        rle.encode(CocoRle(Size(2, 3), "5"))
