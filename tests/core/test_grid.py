import pytest
from samserve.core import grid


def test_points_are_cell_centres_with_x_fastest() -> None:
    points = grid.point_grid(2)

    assert points.tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]


def test_grid_of_no_points_is_empty() -> None:
    assert grid.point_grid(0).shape == (0, 2)


def test_negative_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="0 or more"):
        grid.point_grid(-1)


def test_layer_that_falls_to_no_points_has_an_empty_grid() -> None:
    grids = grid.layer_grids(5, 3, 2)

    assert [len(points) for points in grids] == [25, 4, 1, 0]
