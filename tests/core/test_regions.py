import numpy as np
import pytest
from samserve.core import masks, regions
from samserve.core.regions import MaskChanges
from samserve.types import BoolArray, Box


def ring_with_dots() -> np.ndarray:
    mask = np.zeros((20, 20), dtype=bool)
    mask[2:10, 2:10] = True
    mask[5:7, 5:7] = False  # a hole of 4
    mask[15, 15] = mask[16, 16] = True  # an island of 2, joined at a corner
    return mask


def test_largest_island_is_kept_if_all_are_small() -> None:
    result, changed = regions.remove_small_regions(ring_with_dots(), 1000, "islands")

    assert changed
    assert result.sum() == 60
    assert not result[15:].any()


def test_empty_mask_has_no_islands() -> None:
    mask = np.zeros((4, 4), dtype=bool)

    result, changed = regions.remove_small_regions(mask, 9, "islands")

    assert not changed
    assert not result.any()


def test_input_mask_is_not_modified() -> None:
    mask = ring_with_dots()

    regions.remove_small_regions(mask, 5, "holes")

    assert np.array_equal(mask, ring_with_dots())


def changed(mask: BoolArray, changes: MaskChanges, box: Box | None = None) -> BoolArray:
    result = mask.copy()
    regions.change(result, masks.mask_to_box(mask), changes, box)
    return result


def test_no_changes_are_false() -> None:
    assert not MaskChanges()
    assert MaskChanges(clip_to_box=True)
    assert MaskChanges(min_hole_area=1)
    assert MaskChanges(min_island_area=1)


@pytest.mark.parametrize(("area", "filled"), [(4, False), (5, True), (2**31 - 1, True)])
def test_only_smaller_holes_are_filled(area: int, filled: bool) -> None:
    result = changed(ring_with_dots(), MaskChanges(min_hole_area=area))

    expected = ring_with_dots()
    expected[5:7, 5:7] = filled
    assert np.array_equal(result, expected)


def test_background_at_the_border_of_the_image_is_no_hole() -> None:
    mask = np.ones((9, 9), dtype=bool)
    mask[0, 3:5] = mask[4:6, 8] = False
    mask[3, 3] = False

    result = changed(mask, MaskChanges(min_hole_area=50))

    mask[3, 3] = True
    assert np.array_equal(result, mask)


@pytest.mark.parametrize(("area", "kept"), [(2, True), (3, False), (2**31 - 1, False)])
def test_only_smaller_islands_are_removed(area: int, kept: bool) -> None:
    result = changed(ring_with_dots(), MaskChanges(min_island_area=area))

    expected = ring_with_dots()
    expected[15, 15] = expected[16, 16] = kept
    assert np.array_equal(result, expected)


def test_pixels_outside_of_the_box_are_removed_by_their_centres() -> None:
    mask = np.ones((6, 8), dtype=bool)

    result = changed(mask, MaskChanges(clip_to_box=True), Box(1.5, 2.51, 6.5, 8))

    expected = np.zeros_like(mask)
    expected[3:, 1:6] = True
    assert np.array_equal(result, expected)


def test_masks_are_clipped_before_holes_are_filled_and_islands_removed() -> None:
    mask = np.zeros((20, 20), dtype=bool)
    mask[2:18, 2:18] = True
    mask[2:18, 9] = False  # a gap that divides it
    mask[8:10, 4:6] = False  # a hole that the box cuts open
    mask[14, 14] = False  # a hole
    box = Box(5, 0, 20, 20)

    result = changed(mask, MaskChanges(True, min_hole_area=10, min_island_area=70), box)

    expected = np.zeros_like(mask)
    expected[2:18, 10:18] = True
    assert np.array_equal(result, expected)


def test_mask_without_pixels_in_the_box_becomes_empty() -> None:
    result = changed(ring_with_dots(), MaskChanges(True, 9, 9), Box(11, 0, 14, 20))

    assert not result.any()
