import pytest
from samserve.core import grid


def test_negative_points_per_side_are_invalid() -> None:
    with pytest.raises(ValueError, match="0 or more"):
        grid.point_grid(-1)


def test_layer_without_points_has_an_empty_grid() -> None:
    grids = grid.layer_grids(5, 3, 2)

    assert [points.shape for points in grids] == [(25, 2), (4, 2), (1, 2), (0, 2)]
