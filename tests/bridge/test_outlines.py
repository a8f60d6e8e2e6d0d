"""Outlines of masks, compared with OpenCV's simplification of the same contour."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from samserve.bridge.tools.outlines import is_solid, outlines, simplified
from samserve.client import Mask, Polygon, Polygons

SIDE = 200
Ring = npt.NDArray[np.float64]


def rough_ring(seed: int, corners: int = 80) -> Ring:
    """Return a closed line around the middle, float64 ``[n, 2]``."""
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    radius = 60 + np.random.default_rng(seed).normal(0, 4, corners)
    return SIDE / 2 + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def polygons_of(*parts: Polygon) -> Polygons:
    return Polygons((SIDE, SIDE), parts, 1.0)


def part(ring: Ring, *holes: Ring) -> Polygon:
    return Polygon(ring.astype(np.float32), tuple(hole.astype(np.float32) for hole in holes))


def farthest(ring: Ring, polygon: Ring) -> float:
    """Return the distance of the corner of *ring* that is farthest from the line of *polygon*."""
    contour = polygon.astype(np.float32)[:, None]
    return max(abs(cv2.pointPolygonTest(contour, (x, y), True)) for x, y in ring.tolist())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tolerance", [0.5, 2.0, 8.0])
def test_no_corner_is_farther_than_the_tolerance(seed: int, tolerance: float) -> None:
    ring = rough_ring(seed)
    kept = simplified(ring, tolerance)
    reference = cv2.approxPolyDP(ring.astype(np.float32), tolerance, closed=True)

    assert farthest(ring, kept) <= tolerance + 1e-3
    assert {tuple(each) for each in kept} <= {tuple(each) for each in ring}
    # As few corners as OpenCV needs, about: the algorithms begin at different corners.
    assert len(kept) <= 1.25 * len(reference) + 2


def test_tolerance_is_relative_to_the_perimeter_and_never_below_the_gateways() -> None:
    ring = rough_ring(1)
    perimeter = cv2.arcLength(ring.astype(np.float32), closed=True)
    (coarse,) = outlines(polygons_of(part(ring)), 0.02, 0.5)
    (large,) = outlines(polygons_of(part(10 * ring)), 0.02, 0.5)
    (fine,) = outlines(polygons_of(part(ring)), 0.5 / perimeter, 0.5)

    distance = farthest(ring, np.array(coarse))
    assert 0.005 * perimeter < distance <= 0.02 * perimeter - 0.5 + 0.01
    assert abs(len(large) - len(coarse)) <= 2
    assert len(fine) == len(ring) + 1


@pytest.mark.parametrize("corners", [3, 4, 50])
@pytest.mark.parametrize("tolerance", [5.0, 1e6])
def test_polygons_keep_three_corners(corners: int, tolerance: float) -> None:
    ring = rough_ring(0, corners)

    assert len(simplified(ring, tolerance)) >= 3


def test_line_with_repeated_corners_is_a_polygon() -> None:
    ring = np.array([[1.0, 1.0], [1.0, 1.0], [9.0, 1.0], [1.0, 1.0]])

    assert len(simplified(ring, 1.0)) >= 3


def test_small_parts_and_holes_are_left_out_and_lines_are_closed() -> None:
    square = np.array([[0, 0], [100, 0], [100, 100], [0, 100]], np.float64)
    parts = (part(square, square / 4 + 10), part(square / 4), part(square / 5 - 1))

    found = list(outlines(polygons_of(*parts), 0.001, 0.5))

    assert [max(corner[0] for corner in each) for each in found] == [100.0, 25.0]
    assert all(each[0] == each[-1] and len(each) == 5 for each in found)
    assert list(outlines(polygons_of(), 0.001, 0.5)) == []


@pytest.mark.parametrize(("side", "solid"), [(40, True), (60, False)])
def test_mask_that_is_mostly_holes_is_not_solid(side: int, solid: bool) -> None:
    square = np.array([[0, 0], [100, 0], [100, 100], [0, 100]], np.float64)
    hole = square * side / 100 + 10
    mask = Mask(
        *((SIDE, SIDE), "", 0, 0.9, 0.9, 100**2 - side**2, (0.0, 0.0, 99.0, 99.0)),
        polygons=polygons_of(part(square, hole)),
    )

    assert is_solid(mask) is solid
