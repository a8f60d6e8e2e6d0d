"""Masks over seams, from known shapes instead of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from samserve.annotate.tiles import merge
from samserve.annotate.tiles.masks import TileMask, from_json
from samserve.annotate.tiles.merge import Merged
from samserve.annotate.tiles.plan import Grid, Tile, Tiling
from samserve.core import intervals, rle
from samserve.types import BoolArray, Size

SIDE = 400
GRID = Grid(Size(SIDE, SIDE), Tiling(224, 48))
"""Four tiles, from 0 to 224 and from 176 to 400."""
Shape = Callable[[Tile], BoolArray | None]


def box(left: int, top: int, right: int, bottom: int) -> BoolArray:
    mask = np.zeros((SIDE, SIDE), dtype=np.bool_)
    mask[top:bottom, left:right] = True
    return mask


def seen(*shapes: BoolArray, missed: Sequence[tuple[int, int, int]] = ()) -> list[list[TileMask]]:
    """Return the masks of each tile: what it sees of each shape, unless *missed* there.

    *missed* has the row and the column of a tile, and the index of a shape.
    """
    found = []
    for tile in GRID.tiles():
        left, top, right, bottom = tile.window
        parts = [
            shape[top:bottom, left:right]
            for index, shape in enumerate(shapes)
            if (tile.row, tile.column, index) not in missed
        ]
        found.append([mask_of(tile, part) for part in parts if part.any()])
    return found


def mask_of(tile: Tile, part: BoolArray, predicted_iou: float = 0.9) -> TileMask:
    value = {
        "counts": rle.encode(part).counts,
        "predicted_iou": predicted_iou,
        "stability_score": 0.95,
        "point": [1.5, 2.5],
    }
    return from_json(GRID, tile, [value])[0]


def merged(masks: list[list[TileMask]]) -> list[Merged]:
    return merge.cleaned(GRID, merge.merge(GRID, masks))


def pixels(found: Merged) -> BoolArray:
    return intervals.dense(found.pixels(GRID), SIDE, (0, 0, SIDE, SIDE))


def test_an_object_over_a_seam_is_one_mask_with_all_of_its_pixels() -> None:
    over_seam, over_corner = box(120, 20, 300, 90), box(100, 140, 330, 290)

    found = merged(seen(over_seam, over_corner))

    assert [len(each.pieces) for each in found] == [2, 4]
    assert (pixels(found[0]) == over_seam).all()
    assert (pixels(found[1]) == over_corner).all()
    assert found[1].crop == (0, 0, SIDE, SIDE)
    assert found[1].extent == (100, 140, 330, 290)


def test_an_object_in_the_overlap_is_the_mask_of_the_tile_that_sees_it_whole() -> None:
    shape = box(180, 20, 215, 60)

    found = merged(seen(shape))

    assert [len(each.pieces) for each in found] == [1]
    assert (pixels(found[0]) == shape).all()


def test_the_whole_mask_is_preferred_to_a_cut_one_of_a_higher_score() -> None:
    first, second, *_ = GRID.tiles()
    cut = mask_of(first, crop(box(150, 20, 224, 90), first), 0.99)
    whole = mask_of(second, crop(box(182, 20, 300, 90), second), 0.9)

    found = merged([[cut], [whole], [], []])

    assert len(found) == 1
    assert not found[0].cut
    assert found[0].predicted_iou == 0.9


def test_scores_of_a_union_are_means_by_area() -> None:
    shape = box(76, 20, 300, 90)
    first, second, *others = seen(shape)
    parts = [mask_of(each[0].tile, crop(shape, each[0].tile), iou) for each, iou in (
        (first, 0.9), (second, 0.8))]  # fmt: skip

    (found,) = merged([[parts[0]], [parts[1]], *others])

    areas = [part.area for part in parts]
    expected = (0.9 * areas[0] + 0.8 * areas[1]) / sum(areas)
    assert abs(found.predicted_iou - expected) < 1e-9
    assert found.stability_score == 0.95


def crop(shape: BoolArray, tile: Tile) -> BoolArray:
    left, top, right, bottom = tile.window
    return shape[top:bottom, left:right]


def test_the_background_does_not_join_objects() -> None:
    objects = [box(40, 40, 100, 100), box(120, 20, 300, 90), box(250, 250, 350, 330)]
    background = ~np.logical_or.reduce(objects)

    found = merged(seen(background, *objects))

    assert [len(each.pieces) for each in found] == [4, 1, 2, 1]
    for each, expected in zip(found, [background, *objects], strict=True):
        assert (pixels(each) == expected).all()


def test_a_group_has_one_mask_of_each_tile() -> None:
    # Both agree with the whole in the overlap, but they are different masks of one tile.
    whole, half = box(100, 20, 300, 90), box(160, 20, 300, 90)
    tiles = list(GRID.tiles())
    first = [mask_of(tiles[0], crop(whole, tiles[0])), mask_of(tiles[0], crop(half, tiles[0]))]
    second = [mask_of(tiles[1], crop(whole, tiles[1]))]

    found = merge.merge(GRID, [first, second, [], []])

    assert sorted(len(each.pieces) for each in found) == [1, 2]


def test_a_part_that_another_tile_sees_whole_is_dropped() -> None:
    # The left tile sees the start of an object at its edge; the right one has not found it.
    sliver = box(205, 60, 224, 120)
    tile = next(iter(GRID.tiles()))

    assert merged([[mask_of(tile, crop(sliver, tile))], [], [], []]) == []


def test_a_cut_mask_that_only_its_tile_sees_is_kept() -> None:
    shape = box(20, 20, 300, 90)

    found = merged(seen(shape, missed=[(0, 1, 0)]))

    assert [(each.cut, each.extent) for each in found] == [(True, (20, 20, 224, 90))]


def test_of_nearly_equal_objects_the_best_is_kept() -> None:
    tile = next(iter(GRID.tiles()))
    good, worse = box(20, 20, 120, 120), box(20, 20, 118, 121)
    masks = [mask_of(tile, crop(worse, tile), 0.8), mask_of(tile, crop(good, tile), 0.9)]

    (found,) = merged([masks, [], [], []])

    assert (pixels(found) == good).all()
