from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from samserve.annotate.tiles.plan import Grid, Tiling
from samserve.client import Prompt
from samserve.errors import InvalidRequest
from samserve.types import Size


@given(st.integers(1, 700), st.integers(1, 700), st.integers(64, 200), st.data())
def test_equal_tiles_cover_the_image_with_the_overlap(
    height: int, width: int, side: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(side // 16, side // 2))
    grid = Grid(Size(height, width), Tiling(side, overlap))

    covered = np.zeros((height, width), dtype=int)
    tiles = {(tile.row, tile.column): tile for tile in grid.tiles()}
    for tile in tiles.values():
        left, top, right, bottom = tile.window
        covered[top:bottom, left:right] += 1
        assert tile.size == Size(min(side, height), min(side, width))
        after = tiles.get((tile.row, tile.column + 1))
        assert after is None or right - after.window[0] >= overlap
        below = tiles.get((tile.row + 1, tile.column))
        assert below is None or bottom - below.window[1] >= overlap
    assert covered.min() == 1 or covered.all()


@given(st.integers(0, 999), st.integers(0, 999), st.integers(1, 64), st.integers(1, 64))
def test_a_box_up_to_the_overlap_is_whole_in_the_best_tile(
    left: int, top: int, width: int, height: int
) -> None:
    grid = Grid(Size(1000, 1000), Tiling(256, 64))
    box = (left, top, min(left + width, 1000), min(top + height, 1000))

    tile = grid.best_tile(Prompt(box=box))

    assert tile.window[0] <= box[0] < box[2] <= tile.window[2]
    assert tile.window[1] <= box[1] < box[3] <= tile.window[3]
    centre = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    others = [
        other
        for other in grid.tiles()
        if other.window[0] <= box[0]
        and other.window[1] <= box[1]
        and other.window[2] >= box[2]
        and other.window[3] >= box[3]
    ]

    def distance(window: tuple[int, int, int, int]) -> float:
        return float(
            np.hypot(
                (window[0] + window[2]) / 2 - centre[0], (window[1] + window[3]) / 2 - centre[1]
            )
        )

    assert distance(tile.window) == min(distance(other.window) for other in others)


def test_a_prompt_that_fits_no_tile_names_the_size_that_is_needed() -> None:
    grid = Grid(Size(4000, 4000), Tiling(1024, 128))

    with pytest.raises(InvalidRequest, match="at least 3000 and --overlap with at least 1500"):
        grid.best_tile(Prompt(box=(100, 100, 1600, 900)))
    with pytest.raises(InvalidRequest, match="outside of the image of 4000 x 4000"):
        grid.best_tile(Prompt(points=[(4001, 10)]))
    with pytest.raises(InvalidRequest, match="neither points nor a box"):
        grid.best_tile(Prompt())


@pytest.mark.parametrize(
    ("side", "overlap", "text"),
    [
        (32, 4, "tile: is 32 pixels, the minimum is 64"),
        (1024, 1024, "overlap: is 1024 pixels; for tiles of 1024 it must be from 64"),
        (1024, 513, "to 512"),
        (1024, 63, "from 64"),
        (1024, -1, "from 64"),
    ],
)
def test_tilings_that_cannot_be_used_are_invalid(side: int, overlap: int, text: str) -> None:
    with pytest.raises(InvalidRequest, match=text):
        Tiling(side, overlap)


def test_tiles_over_a_limit_of_the_server_are_invalid() -> None:
    tiling = Tiling(2048, 256)
    limits = {"max_image_side": 2048, "max_image_pixels": 2048**2, "max_request_bytes": 1 << 24}

    tiling.check_limits(limits)
    for name in limits:
        with pytest.raises(InvalidRequest, match=f"tile: of 2048 pixels .*limits.{name}"):
            tiling.check_limits({**limits, name: 2047})


def test_images_that_run_lengths_cannot_describe_are_invalid() -> None:
    Grid(Size(46340, 46340), Tiling(2048, 256))
    with pytest.raises(InvalidRequest, match=r"46341 x 46341 pixels; run lengths .* 2\*\*31-1"):
        Grid(Size(46341, 46341), Tiling(2048, 256))
