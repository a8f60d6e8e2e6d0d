"""Masks measured, filled and outlined, against pycocotools."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as reference
from samserve.core import rle, run_lengths
from samserve.datasets import pixels, rings
from samserve.datasets.types import Polygons, Ring
from samserve.errors import InvalidRequest
from samserve.types import Array, BoolArray, CocoRle, Size

from tests.datasets import sets
from tests.support.examples import examples

SIZES = st.builds(Size, st.integers(1, 30), st.integers(1, 30))
MASKS = SIZES.flatmap(sets.masks)
DONUT = sets.disc(Size(40, 50), (22, 18), 15)


def coco_pixels(parts: Polygons, size: Size) -> BoolArray:
    """Fill polygons as pycocotools does; each part is one ring."""
    flat = [[value for corner in ring for value in corner] for (ring,) in parts.parts]
    if not flat:
        return np.zeros((size.height, size.width), dtype=bool)
    found = reference.merge(reference.frPyObjects(flat, size.height, size.width))
    # Its own decoder warns with numpy 2.
    return run_lengths.decode(CocoRle(size, found["counts"].decode()))


def bridged(outline: Polygons) -> Polygons:
    return Polygons(tuple((rings.joined(part),) for part in outline.parts))


@examples(100)
@given(MASKS)
def test_area_and_box_are_those_of_pycocotools(mask: BoolArray) -> None:
    found = pixels.extent(run_lengths.runs(mask), Size(*mask.shape))
    packed = reference.encode(np.asfortranarray(mask, dtype=np.uint8))

    assert found.area == mask.sum()
    assert found.coco_box() == tuple(reference.toBbox(packed))


@examples(100)
@given(MASKS)
def test_outlines_have_the_pixels_of_the_mask_here_and_in_pycocotools(mask: BoolArray) -> None:
    size, encoded = Size(*mask.shape), rle.encode(mask)
    outline = pixels.to_polygons(encoded, size)
    alone = bridged(outline)
    whole = Polygons(((rings.joined_parts(outline.parts),),) if outline.parts else ())

    assert pixels.to_rle(outline, size) == encoded
    assert pixels.to_rle(alone, size) == encoded
    assert pixels.to_rle(whole, size) == encoded
    assert (coco_pixels(alone, size) == mask).all()
    assert (coco_pixels(whole, size) == mask).all()


@examples(100)
@given(SIZES.flatmap(lambda size: st.tuples(st.just(size), sets.polygons(size))))
def test_polygons_differ_from_pycocotools_at_their_border_only(
    drawn: tuple[Size, Polygons],
) -> None:
    size, drawn_polygons = drawn
    ours = run_lengths.decode(pixels.to_rle(drawn_polygons, size))
    different = np.argwhere(ours != coco_pixels(drawn_polygons, size))

    for row, column in different:
        # It rounds corners to fifths of a pixel, and lines to points at that distance.
        assert distance(drawn_polygons, column + 0.5, row + 0.5) < 0.5


def distance(polygons: Polygons, x: float, y: float) -> float:
    """Return the distance of a point to the nearest line."""
    lines = [
        pair for (ring,) in polygons.parts for pair in zip(ring, (*ring[1:], ring[0]), strict=True)
    ]
    start, end = (np.array([line[index] for line in lines]) for index in (0, 1))
    along = end - start
    length = np.maximum((along**2).sum(axis=1), 1e-12)
    at = np.clip(((np.array([x, y]) - start) * along).sum(axis=1) / length, 0, 1)
    return float(np.hypot(*(start + at[:, None] * along - (x, y)).T).min())


def test_a_part_of_a_polygon_that_overlaps_another_is_filled_once() -> None:
    square: Ring = ((1, 1), (5, 1), (5, 5), (1, 5))
    other: Ring = ((3, 3), (7, 3), (7, 7), (3, 7))
    size = Size(9, 9)

    union = run_lengths.decode(pixels.to_rle(Polygons(((square,), (other,))), size))
    even_odd = run_lengths.decode(pixels.to_rle(Polygons(((square, other),)), size))

    assert union.sum() == 16 + 16 - 4
    assert even_odd.sum() == 16 + 16 - 8


def test_outlines_within_a_tolerance_have_fewer_corners_and_nearly_the_same_pixels() -> None:
    size, encoded = Size(*DONUT.shape), rle.encode(DONUT)
    exact, simple = (pixels.to_polygons(encoded, size, tolerance) for tolerance in (0.0, 1.0))
    filled = run_lengths.decode(pixels.to_rle(simple, size))

    assert corners(simple) < corners(exact) / 2
    assert [len(part) for part in simple.parts] == [2]
    assert (filled & DONUT).sum() / (filled | DONUT).sum() > 0.9


def corners(outline: Polygons) -> int:
    return sum(len(ring) for part in outline.parts for ring in part)


def test_bridges_are_short() -> None:
    (part,) = pixels.to_polygons(rle.encode(DONUT), Size(*DONUT.shape)).parts
    ring: Array = np.array(rings.joined(part))
    exterior = len(part[0])

    (bridge,) = [
        np.hypot(*(ring[index + 1] - ring[index]))
        for index in range(len(ring) - 1)
        if tuple(ring[index]) in part[0] and tuple(ring[index + 1]) in part[1]
    ]

    assert len(ring) == exterior + len(part[1]) + 2
    # The ring is 10 pixels wide.
    assert 9 <= bridge <= 11


@pytest.mark.parametrize("step", [1, 2, 7])
def test_sampled_pixels_are_every_few_ones(step: int) -> None:
    found = pixels.sampled(rle.encode(DONUT), Size(*DONUT.shape), step)

    assert (found == DONUT[::step, ::step]).all()


def test_equal_pixels_have_equal_fingerprints_however_they_are_written() -> None:
    size = Size(2, 3)
    mask = CocoRle(size, rle.from_runs(size, np.array([1, 2, 3])).counts)
    split = CocoRle(size, rle.from_runs(size, np.array([1, 1, 0, 1, 3])).counts)
    other = CocoRle(size, rle.from_runs(size, np.array([2, 1, 3])).counts)

    assert mask != split
    assert pixels.fingerprint(mask, size) == pixels.fingerprint(split, size)
    assert pixels.fingerprint(mask, size) != pixels.fingerprint(other, size)
    assert pixels.fingerprint(rle.encode(np.zeros((2, 3), bool)), size) == pixels.EMPTY


def test_pixels_that_would_take_more_memory_than_their_text_are_rejected() -> None:
    wide = Size(1, 2**31 - 1)
    line: Ring = ((0.0, 0.2), (float(2**31), 0.2), (0.0, 0.9))
    whole = rle.from_runs(wide, np.array([0, wide.pixels]))

    with pytest.raises(InvalidRequest, match="columns in all, at most"):
        pixels.to_rle(Polygons(((line,),)), wide)
    with pytest.raises(InvalidRequest, match="pixels in its columns, at most"):
        pixels.to_polygons(whole, wide)
    assert pixels.extent_of(whole, wide).area == wide.pixels
