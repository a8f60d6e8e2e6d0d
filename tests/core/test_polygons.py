from __future__ import annotations

import cv2
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from samserve.core import mask_formats, masks, polygons, scanlines
from samserve.types import BoolArray, MaskFormat, PolygonOptions, Polygons, Size

from tests.core import logits
from tests.core.test_masks import upsampling_for

pixels = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=14))
# Enlarged, so that simplification has something to simplify, and parts touch at corners.
random_masks = st.tuples(pixels, st.integers(1, 5)).map(
    lambda drawn: np.kron(drawn[0], np.ones((drawn[1], drawn[1]), np.bool_))
)
tolerances = st.sampled_from([0.0, 0.3, 1.0, 2.0, 5.0, 40.0, 1000.0])


def encode(mask: BoolArray, tolerance: float = 0.0, min_area: int = 0) -> Polygons:
    options = PolygonOptions(tolerance, min_area)
    encoded = mask_formats.encode(mask, MaskFormat.POLYGONS, options)
    assert isinstance(encoded, Polygons)
    return encoded


def geometry(encoded: Polygons) -> shapely.MultiPolygon:
    return shapely.MultiPolygon([(each.exterior, each.holes) for each in encoded.polygons])


def filled(encoded: Polygons) -> BoolArray:
    rings = [ring for each in encoded.polygons for ring in (each.exterior, *each.holes)]
    return scanlines.pixels(scanlines.runs_inside(rings, encoded.size), encoded.size)


def centres_inside(encoded: Polygons) -> tuple[BoolArray, BoolArray]:
    """The pixels whose centres are inside by GEOS: without, and with those on a line."""
    y, x = np.mgrid[: encoded.size.height, : encoded.size.width] + 0.5
    shape = geometry(encoded)
    return shapely.contains_xy(shape, x, y), shapely.intersects_xy(shape, x, y)


def rectangle(height: int, width: int, *boxes: tuple[int, int, int, int]) -> BoolArray:
    """Pixels inside an odd number of boxes: top, left, bottom and right."""
    mask = np.zeros((height, width), dtype=np.bool_)
    for top, left, bottom, right in boxes:
        mask[top:bottom, left:right] ^= True
    return mask


@given(random_masks)
def test_pixels_inside_the_exact_outline_are_those_of_the_mask(mask: BoolArray) -> None:
    encoded = encode(mask)

    strictly, with_lines = centres_inside(encoded)
    assert np.array_equal(strictly, mask)
    assert np.array_equal(with_lines, mask)
    assert np.array_equal(filled(encoded), mask)
    assert encoded.iou == 1


@given(random_masks)
def test_each_part_has_a_polygon_and_each_hole_a_ring(mask: BoolArray) -> None:
    encoded = encode(mask)

    parts, _ = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    outside = np.pad(~mask, 1, constant_values=True).astype(np.uint8)
    background, _ = cv2.connectedComponents(outside, connectivity=4)
    assert len(encoded.polygons) == parts - 1
    assert sum(len(each.holes) for each in encoded.polygons) == background - 2


@given(random_masks, tolerances)
def test_polygons_are_valid_oriented_and_inside_the_image(
    mask: BoolArray, tolerance: float
) -> None:
    encoded = encode(mask, tolerance)

    shape = geometry(encoded)
    assert shape.is_valid
    for each in encoded.polygons:
        assert shapely.is_ccw(shapely.LinearRing(each.exterior))
        assert not any(shapely.is_ccw(shapely.LinearRing(hole)) for hole in each.holes)
    if not shape.is_empty:
        x_min, y_min, x_max, y_max = shape.bounds
        height, width = mask.shape
        assert 0 <= x_min < x_max <= width
        assert 0 <= y_min < y_max <= height


@given(random_masks, tolerances)
def test_simplification_keeps_parts_and_holes_within_the_tolerance(
    mask: BoolArray, tolerance: float
) -> None:
    exact, simplified = encode(mask), encode(mask, tolerance)

    assert [len(each.holes) for each in exact.polygons] == [
        len(each.holes) for each in simplified.polygons
    ]
    for before, after in zip(exact.polygons, simplified.polygons, strict=True):
        rings = zip((before.exterior, *before.holes), (after.exterior, *after.holes), strict=True)
        for first, second in rings:
            distance = shapely.distance(shapely.points(first), shapely.LinearRing(second))
            assert distance.max() <= tolerance + 1e-6
            corners = {tuple(corner) for corner in second.tolist()}
            if tolerance > 0:
                assert len(corners) <= len(first)


@given(random_masks, tolerances)
def test_iou_is_that_of_the_pixels_inside_by_another_rasteriser(
    mask: BoolArray, tolerance: float
) -> None:
    encoded = encode(mask, tolerance)

    inside = filled(encoded)
    strictly, with_lines = centres_inside(encoded)
    assert np.array_equal(strictly, strictly & inside)
    assert np.array_equal(inside, inside & with_lines)
    either = np.count_nonzero(mask | inside)
    assert encoded.iou == (np.count_nonzero(mask & inside) / either if either else 1)


@settings(max_examples=50)
@given(random_masks, st.integers(0, 60))
def test_small_parts_and_holes_are_left_out(mask: BoolArray, min_area: int) -> None:
    encoded = encode(mask, min_area=min_area)

    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        mask.astype(np.uint8), connectivity=8
    )
    kept = [part for part in range(1, count) if stats[part, cv2.CC_STAT_AREA] >= min_area]
    assert len(encoded.polygons) == len(kept)
    # All pixels of the kept parts, and holes of fewer pixels, islands in them included.
    inside = filled(encoded)
    assert inside[np.isin(labels, kept)].all()
    added, _, stats, _ = cv2.connectedComponentsWithStats(
        (inside & ~np.isin(labels, kept)).astype(np.uint8), connectivity=4
    )
    assert all(stats[part, cv2.CC_STAT_AREA] < min_area for part in range(1, added))


def test_largest_part_comes_first_and_islands_in_holes_are_parts() -> None:
    # A ring with an island that has a hole, beside a smaller rectangle that starts above it.
    mask = rectangle(
        80, 120, (10, 10, 70, 70), (20, 20, 60, 60), (30, 30, 50, 50), (36, 36, 40, 41)
    )
    mask |= rectangle(80, 120, (0, 90, 12, 100))

    encoded = encode(mask, tolerance=1)

    areas = [shapely.Polygon(each.exterior, each.holes).area for each in encoded.polygons]
    assert areas == sorted(areas, reverse=True)
    assert [len(each.holes) for each in encoded.polygons] == [1, 1, 0]
    assert encoded.iou > 0.98


def test_pixels_that_touch_at_a_corner_are_one_part() -> None:
    encoded = encode(np.eye(5, dtype=np.bool_))

    assert len(encoded.polygons) == 1
    assert encoded.polygons[0].holes == ()


def test_one_pixel_is_a_part_around_its_centre() -> None:
    mask = np.zeros((3, 4), dtype=np.bool_)
    mask[1, 2] = True

    encoded = encode(mask)

    (part,) = encoded.polygons
    assert sorted(map(tuple, part.exterior.tolist())) == [(2, 1.5), (2.5, 1), (2.5, 2), (3, 1.5)]


def test_outline_of_a_whole_image_is_at_its_border() -> None:
    encoded = encode(np.ones((5, 7), dtype=np.bool_))

    assert geometry(encoded).bounds == (0, 0, 7, 5)
    assert encoded.iou == 1


def test_empty_mask_has_no_polygons() -> None:
    encoded = encode(np.zeros((5, 7), dtype=np.bool_), tolerance=1)

    assert encoded.polygons == ()
    assert encoded.iou == 1


def test_polygons_that_leave_everything_out_state_it() -> None:
    encoded = encode(rectangle(9, 9, (2, 2, 5, 5)), min_area=10)

    assert encoded.polygons == ()
    assert encoded.iou == 0


def test_small_part_is_left_out_with_its_large_hole() -> None:
    mask = rectangle(40, 40, (2, 2, 32, 32), (3, 3, 31, 31))

    encoded = encode(mask, min_area=200)

    assert encoded.polygons == ()


def test_hole_below_the_tolerance_remains_beside_a_simplified_exterior() -> None:
    disc = cv2.circle(np.zeros((200, 200), np.uint8), (100, 100), 80, 1, -1)
    mask = cv2.circle(disc, (100, 100), 3, 0, -1).astype(np.bool_)

    (part,) = encode(mask, tolerance=8).polygons

    assert len(part.holes) == 1
    assert len(part.exterior) < 12


@pytest.mark.parametrize("tolerance", [0.5, 1.0, 5.0])
def test_smooth_outlines_stay_within_the_tolerance_at_their_first_corner(
    tolerance: float,
) -> None:
    resized, upsampling = upsampling_for(Size(240, 320))
    for low_res in logits.blobs(3, 30, resized):
        mask = masks.binary_mask(low_res, upsampling, level=0.0)
        parts = zip(encode(mask).polygons, encode(mask, tolerance).polygons, strict=True)
        for exact, simplified in parts:
            corners, line = shapely.points(exact.exterior), shapely.LinearRing(simplified.exterior)
            assert shapely.distance(corners, line).max() <= tolerance + 1e-6


def test_outlines_of_objects_larger_than_a_tile_are_joined() -> None:
    size = Size(700, 900)
    resized, upsampling = upsampling_for(size)
    for low_res in [*logits.blobs(3, 4, resized), logits.difficult()["frame"]]:
        traced = masks.trace(low_res, upsampling, level=0.0)
        mask = traced.pixels()

        encoded = mask_formats.encode(traced, MaskFormat.POLYGONS, PolygonOptions(0.0))

        assert isinstance(encoded, Polygons)
        assert np.array_equal(filled(encoded), mask)
        parts, _ = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
        assert len(encoded.polygons) == parts - 1


def test_polygons_of_traced_masks_are_those_of_their_pixels() -> None:
    resized, upsampling = upsampling_for(Size(300, 400))
    (low_res,) = logits.blobs(5, 1, resized)
    traced = masks.trace(low_res, upsampling, level=0.0)

    first = mask_formats.encode(traced, MaskFormat.POLYGONS)
    second = mask_formats.encode(traced.pixels(), MaskFormat.POLYGONS)

    assert isinstance(first, Polygons)
    assert isinstance(second, Polygons)
    assert first.iou == second.iou
    assert geometry(first) == geometry(second)


@pytest.mark.parametrize("invalid", [1, 3, 4])
def test_polygons_that_would_be_invalid_are_simplified_less(
    invalid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = cv2.circle(np.zeros((100, 100), np.uint8), (50, 50), 40, 1, -1).astype(np.bool_)
    coarse, exact = encode(mask, tolerance=8), encode(mask)
    answers = iter([False] * invalid + [True])
    monkeypatch.setattr(polygons.shapely, "is_valid", lambda _: next(answers))

    encoded = encode(mask, tolerance=8)

    corners = len(encoded.polygons[0].exterior)
    assert len(coarse.polygons[0].exterior) < corners
    assert (corners >= len(exact.polygons[0].exterior)) == (invalid >= 3)
    assert encoded.iou > coarse.iou


@given(random_masks)
@settings(max_examples=50, deadline=None)
def test_outlines_of_too_much_work_are_exact_without_needless_corners(mask: BoolArray) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(polygons, "_MAX_WORK", 0)
        patch.setattr(polygons.shapely, "simplify", None)
        encoded = encode(mask, tolerance=5.0)
    exact = encode(mask)

    assert np.array_equal(filled(encoded), mask)
    assert encoded.iou == 1.0
    shape = geometry(encoded)
    assert shape.is_valid
    assert shape.equals(geometry(exact))
    assert shapely.get_num_coordinates(shape) <= shapely.get_num_coordinates(geometry(exact)) + len(
        shapely.get_rings(shapely.get_parts(shape))
    )


def test_fine_grids_are_not_simplified(monkeypatch: pytest.MonkeyPatch) -> None:
    """GEOS would take minutes for those of a whole image, and occupy a thread for them."""
    monkeypatch.setattr(polygons.shapely, "simplify", None)
    mask = np.indices((200, 200)).sum(axis=0) % 2 == 0

    encoded = encode(mask, tolerance=1.0)

    assert np.array_equal(filled(encoded), mask)
