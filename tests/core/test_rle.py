import tracemalloc
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco
from samserve.core import rle, run_lengths
from samserve.types import BoolArray, CocoRle, Size

from tests.support.examples import examples

old_numpy_protocol = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"  # pycocotools.mask.decode on numpy 2
)
bool_masks = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40))
characters = st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=40)


@settings(deadline=None)
@given(bool_masks)
def test_mask_round_trip_is_lossless(mask: BoolArray) -> None:
    encoded = rle.encode(mask)

    assert np.array_equal(rle.decode(encoded), mask)
    assert encoded.size == Size(*mask.shape)


@settings(deadline=None)
@given(bool_masks)
def test_encoding_in_numpy_is_the_same_as_by_pycocotools(mask: BoolArray) -> None:
    assert run_lengths.encode(mask) == rle.encode(mask)


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0), (1, 1), (3000, 4000)], ids=str)
@pytest.mark.parametrize("inside", [False, True])
def test_encoding_in_numpy_of_uniform_masks_is_the_same(
    shape: tuple[int, int], inside: bool
) -> None:
    mask = np.full(shape, inside)

    assert run_lengths.encode(mask) == rle.encode(mask)


@pytest.mark.parametrize("order", ["C", "F"])
def test_encoding_in_numpy_of_long_runs_is_the_same(order: Literal["C", "F"]) -> None:
    """Their differences have every number of characters, and both signs."""
    edges = np.random.default_rng(0).integers(0, 1 << np.arange(4, 24).repeat(20), 400)
    pixels = np.zeros(1 << 24, dtype=np.int8)
    np.add.at(pixels, edges, 1)
    mask = np.asarray((np.cumsum(pixels) % 2 == 1).reshape(4096, 4096).T, order=order)

    encoded = run_lengths.encode(mask)

    assert encoded == rle.encode(mask)
    assert np.array_equal(run_lengths.decode(encoded), mask)


@old_numpy_protocol
@settings(deadline=None)
@given(bool_masks)
def test_decoding_agrees_with_pycocotools(mask: BoolArray) -> None:
    expected = coco.encode(np.asfortranarray(mask, dtype=np.uint8))

    actual = rle.decode(CocoRle(Size(*mask.shape), expected["counts"].decode()))

    assert np.array_equal(actual, coco.decode(expected))


def test_runs_are_column_major_and_start_with_background() -> None:
    mask = np.array([[True, False], [True, True], [False, False]])

    assert rle.uncompressed(rle.encode(mask)) == [0, 2, 2, 1, 1]


def test_long_runs_are_encoded() -> None:
    mask = np.zeros((3000, 4000), dtype=bool)
    mask[1500, 2000] = True

    encoded = rle.encode(mask)

    assert rle.uncompressed(encoded) == [2000 * 3000 + 1500, 1, 1999 * 3000 + 1499]


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ("", "is empty"),
        ("0\x000", "outside"),
        ("é", "not ASCII"),
        ("5p", "outside"),
        ("P", "ends within a run"),
        ("5", "sums to 5"),
        ("OOOO", "negative or over"),
        ("oooooooooo0", "more than 7"),
        ("0" * 1000, "too many"),
    ],
)
def test_malformed_counts_are_invalid(counts: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        rle.validate(Size(4, 4), counts)

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [Size(0, 4), Size(-4, -4), Size(2**16, 2**16)], ids=str)
def test_impossible_size_is_invalid(size: Size) -> None:
    with pytest.raises(ValueError, match="size"):
        rle.validate(size, "0")


def test_large_size_is_checked_without_allocating_it() -> None:
    with pytest.raises(ValueError, match="sums to"):
        rle.validate(Size(40000, 40000), "5")


@pytest.mark.parametrize("chunk_chars", [8, 9, 13])
def test_mask_decoded_in_chunks_is_the_same(
    chunk_chars: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = [np.random.default_rng(0).random((60, 70)) < density for density in (0.01, 0.1, 0.5, 1)]
    encoded = [rle.encode(mask) for mask in masks]
    whole = [rle.uncompressed(each) for each in encoded]

    monkeypatch.setattr(run_lengths, "_CHUNK_CHARS", chunk_chars)

    for mask, each, runs in zip(masks, encoded, whole, strict=True):
        assert rle.uncompressed(each) == runs
        assert np.array_equal(rle.decode(each), mask)


def test_many_runs_take_little_memory() -> None:
    size = Size(1500, 2000)
    counts = "111" + "0" * (size.pixels - 3)

    tracemalloc.start()
    rle.validate(size, counts)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 2 * len(counts) + (8 << 20)


@pytest.mark.parametrize(
    ("counts", "message"), [("0" * 99_999 + "P", "within a run"), ("0" + "P" * 200_000, "run of")]
)
def test_malformed_counts_after_the_first_chunk_are_invalid(counts: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rle.validate(Size(1000, 1000), counts)


@examples(300)
@given(characters, st.integers(1, 12), st.integers(1, 12))
def test_any_string_is_invalid_or_decodes_to_a_mask(counts: str, height: int, width: int) -> None:
    encoded = CocoRle(Size(height, width), counts)
    try:
        rle.validate(encoded.size, counts)
    except ValueError:
        return

    mask = rle.decode(encoded)

    assert mask.shape == (height, width)
    assert mask.sum() == sum(rle.uncompressed(encoded)[1::2])


@old_numpy_protocol
@examples(200)
@given(bool_masks, st.integers(0, 200), st.integers(48, 111))
def test_changed_character_is_invalid_or_decodes_to_a_mask(
    mask: BoolArray, index: int, code: int
) -> None:
    encoded = rle.encode(mask)
    index %= len(encoded.counts)
    changed = CocoRle(
        encoded.size, encoded.counts[:index] + chr(code) + encoded.counts[index + 1 :]
    )
    try:
        decoded = rle.decode(changed)
    except ValueError:
        return

    expected = coco.decode({"size": list(mask.shape), "counts": changed.counts.encode()})

    assert np.array_equal(decoded, expected)
