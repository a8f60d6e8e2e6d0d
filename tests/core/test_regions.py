import numpy as np
from samserve.core import regions


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
