from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from matplotlib.path import Path
from samserve.core import run_lengths, scanlines
from samserve.types import BoolArray, Size

pairs_of_masks = st.integers(1, 20).flatmap(
    lambda side: st.tuples(
        hnp.arrays(np.bool_, (side, 7), elements=st.booleans()),
        hnp.arrays(np.bool_, (side, 7), elements=st.booleans()),
    )
)
# Not at the centres of pixels, so that no centre is on a line by chance.
corners = hnp.arrays(np.float64, (5, 2), elements=st.floats(-3, 15)).map(
    lambda ring: ring + np.pi / 1e4
)


@given(pairs_of_masks)
def test_intersection_counts_the_common_pixels(pair: tuple[BoolArray, BoolArray]) -> None:
    first, second = pair

    common = scanlines.intersection(run_lengths.runs(first), run_lengths.runs(second))

    assert common == np.count_nonzero(first & second)


@given(pairs_of_masks)
def test_run_lengths_decode_to_their_pixels(pair: tuple[BoolArray, BoolArray]) -> None:
    mask, _ = pair

    assert np.array_equal(scanlines.pixels(run_lengths.runs(mask), Size(*mask.shape)), mask)


@given(corners)
def test_pixels_inside_a_triangle_are_those_of_another_rasteriser(ring: np.ndarray) -> None:
    triangle, size = ring[:3], Size(11, 13)
    y, x = np.mgrid[: size.height, : size.width] + 0.5

    found = scanlines.pixels(scanlines.runs_inside([triangle], size), size)

    centres = np.stack([x.ravel(), y.ravel()], axis=1)
    expected = Path([*triangle, triangle[0]], closed=True).contains_points(centres)
    # The other one has another rule for centres on a line.
    clear = shapely.distance(shapely.points(centres), shapely.LinearRing(triangle)) > 1e-9
    assert np.array_equal(found.ravel()[clear], expected[clear])


@given(corners, corners)
def test_pixels_inside_two_rings_are_those_inside_one_of_them_only(
    first: np.ndarray, second: np.ndarray
) -> None:
    size = Size(11, 13)

    both, one, other = (
        scanlines.pixels(scanlines.runs_inside(rings, size), size)
        for rings in ([first, second], [first], [second])
    )

    assert np.array_equal(both, one ^ other)


def test_centres_on_a_line_are_on_its_lower_and_right_side() -> None:
    square = np.array([(0.5, 0.5), (2.5, 0.5), (2.5, 2.5), (0.5, 2.5)])
    size = Size(4, 4)

    inside = scanlines.pixels(scanlines.runs_inside([square], size), size)

    expected = np.zeros((4, 4), dtype=bool)
    expected[:2, :2] = True
    assert np.array_equal(inside, expected)


@pytest.mark.parametrize("runs", [[3, 2], [-1, 7], []])
def test_run_lengths_that_do_not_fit_the_size_are_rejected(runs: list[int]) -> None:
    with pytest.raises(ValueError, match="6 pixels"):
        scanlines.pixels(runs, Size(2, 3))
