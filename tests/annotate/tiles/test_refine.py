"""Windows for objects that tiles have cut, and which new masks replace them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from samserve.annotate.tiles import refine
from samserve.annotate.tiles.merge import Merged
from samserve.annotate.tiles.refine import Windowed
from samserve.client import Mask
from samserve.core import intervals, rle
from samserve.types import BoolArray

from tests.annotate.tiles.test_merge import GRID, SIDE, box, crop, mask_of, merged, seen

THRESHOLDS = {"pred_iou_thresh": 0.8, "stability_score_thresh": 0.9}
OBJECT = box(140, 20, 260, 90)


def cut_object() -> Merged:
    """Return what the left tile has seen of the object."""
    tile = next(iter(GRID.tiles()))
    return Merged((mask_of(tile, crop(OBJECT, tile)),))


def result(windowed: Windowed, shape: BoolArray, iou: float = 0.9, stability: float = 0.95) -> Mask:
    own = crop(shape, windowed.tile)
    counts = rle.encode(own).counts
    return Mask(own.shape, counts, 0, iou, stability, int(own.sum()), (0, 0, 0, 0))


def replaced(found: Sequence[Merged], *masks: Mask) -> dict[int, Merged]:
    (windowed,) = refine.windows(GRID, found)
    return refine.replacements(GRID, found, windowed, [list(masks)], THRESHOLDS)


def test_every_cut_object_that_fits_is_whole_in_one_window() -> None:
    shapes = [box(150, 20, 250, 90), box(150, 110, 250, 170), box(20, 150, 90, 250)]
    shapes += [box(150, 300, 260, 390), box(5, 100, 395, 108), box(30, 30, 90, 90)]
    found = merged(seen(*shapes))

    windows = refine.windows(GRID, found)

    prompted = [index for each in windows for index in each.objects]
    # Not the one that is too long, and not the one that is whole.
    expected = [index for index, each in enumerate(found) if each.cut and each.extent[0] != 5]
    assert sorted(prompted) == sorted(expected)
    assert len(prompted) == 4
    assert len(windows) < 4
    for each in windows:
        left, top, right, bottom = each.tile.window
        assert (right - left, bottom - top) == (224, 224)
        assert min(left, top) >= 0
        assert max(right, bottom) <= SIDE
        for index in each.objects:
            assert not GRID.cut_edges(each.tile, found[index].extent)
        for index, prompt in zip(each.objects, refine.prompts(found, each), strict=True):
            points = [(x + left, y + top) for x, y, *_ in prompt.points]
            assert points == [piece.image_point for piece in found[index].pieces]


def test_a_better_mask_replaces_a_cut_one() -> None:
    found = [cut_object()]
    (windowed,) = refine.windows(GRID, found)

    (new,) = replaced(found, result(windowed, OBJECT)).values()

    assert not new.cut
    pixels = intervals.dense(new.pixels(GRID), SIDE, (0, 0, SIDE, SIDE))
    assert (pixels == OBJECT).all()


def test_other_masks_do_not_replace_it() -> None:
    found = [cut_object()]
    (windowed,) = refine.windows(GRID, found)
    elsewhere = box(200, 20, 260, 90)
    everything = np.ones((SIDE, SIDE), dtype=np.bool_)

    assert replaced(found, result(windowed, OBJECT, 0.87)) == {}  # lower than before
    assert replaced(found, result(windowed, OBJECT, stability=0.8)) == {}
    assert replaced(found, result(windowed, elsewhere)) == {}
    assert replaced(found, result(windowed, everything)) == {}  # cut by the window
    assert replaced(found, result(windowed, np.zeros_like(everything))) == {}
    assert replaced(found, result(windowed, elsewhere, 0.99), result(windowed, OBJECT)) != {}
