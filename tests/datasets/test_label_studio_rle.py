"""Label Studio's run lengths; `tests/tools/label_studio` has them read by its SDK and its page."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from samserve.core import run_lengths
from samserve.datasets.label_studio import rle
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


@given(arrays.arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12))))
@examples(400)
def test_mask_that_is_encoded_is_decoded_exactly(mask: np.ndarray) -> None:
    coded = run_lengths.encode(mask)

    assert rle.decode(bytes(rle.encode(coded)), coded.size) == coded


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, np.ndarray]:
    """Return a stream as other programs may write it, and its values, uint8 ``[h, w, 4]``."""
    height, width = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    shape = (height, width, 4)
    values = draw(arrays.arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 127, 255])))
    widths = draw(st.lists(st.integers(1, 16), min_size=4, max_size=4))
    flat = values.reshape(-1).tolist()
    bits = f"{len(flat):032b}{7:05b}" + "".join(f"{each - 1:04b}" for each in widths)
    place = 0
    while place < len(flat):
        index = draw(st.integers(0, 3))
        count = draw(st.integers(1, min(2 ** widths[index], len(flat) - place)))
        same = len(set(flat[place : place + count])) == 1
        repeated = same and draw(st.booleans())
        own = flat[place : place + (1 if repeated else count)]
        bits += f"{int(repeated)}{index:02b}{count - 1:0{widths[index]}b}"
        bits += "".join(f"{each:08b}" for each in own)
        place += count
    padded = bits + "0" * (-len(bits) % 8)
    return int(padded, 2).to_bytes(len(padded) // 8, "big"), values


@given(streams())
@examples(400)
def test_streams_of_other_programs_are_decoded(stream: tuple[bytes, np.ndarray]) -> None:
    data, values = stream
    height, width, _ = values.shape
    np.testing.assert_array_equal(decoded(list(data), height, width), values)

    found = run_lengths.decode(rle.decode(data, Size(height, width)))

    np.testing.assert_array_equal(found, values[:, :, 3] > 0)


@given(arrays.arrays(np.bool_, (5, 7)), st.data())
@examples(200)
def test_damaged_streams_are_refused_or_decoded(mask: np.ndarray, data: st.DataObject) -> None:
    stream = bytearray(encoded(mask))
    place = data.draw(st.integers(0, len(stream) - 1))
    stream[place] ^= 1 << data.draw(st.integers(0, 7))
    cut = bytes(stream[: data.draw(st.integers(0, len(stream)))])

    for each in (bytes(stream), cut):
        try:
            found = rle.decode(each, Size(5, 7))
        except ValueError:
            continue
        assert run_lengths.decode(found).shape == (5, 7)


def test_large_mask_is_decoded_without_its_pixels() -> None:
    mask = np.zeros((3000, 4000), bool)
    mask[500:2500, 500:3500] = True
    coded = run_lengths.encode(mask)
    stream = bytes(rle.encode(coded))
    tracemalloc.start()

    assert rle.decode(stream, coded.size) == coded

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < mask.size / 4
