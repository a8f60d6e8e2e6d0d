"""Objects that tiles have cut, prompted again in a window with all of them.

An object that no tile has seen whole, because an edge cuts it or because the tile that sees it
whole has not found it, is prompted by the grid points that found its pieces, in a window of the
size of a tile centred on it; objects near it share the window.  Regions of the new mask that are
not connected to the pieces are removed.  It replaces the union of the pieces if the window does not
cut it, if it contains `_CONTAINED` of the union, if it passes the thresholds of AutoMask, and if
its predicted IoU is not lower by more than `_WORSE`.  A box of the union is not used as prompt: one
stray pixel of a piece makes it much too large.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from samserve.annotate.tiles.masks import TileMask, from_mask
from samserve.annotate.tiles.merge import Merged
from samserve.annotate.tiles.plan import Grid, Tile
from samserve.client import Mask, Prompt
from samserve.core import intervals, regions, run_lengths
from samserve.core.intervals import Window
from samserve.types import CocoRle

_CONTAINED = 0.8
_WORSE = 0.02
_MAX_POINTS = 16
_MAX_PROMPTS = 32
"""Prompts of one window: fewer than every server permits by default."""
_OUTSIDE_OF_GRID = -1

Thresholds = Mapping[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class Windowed:
    """A window of the size of a tile, and the objects that are prompted in it, by their index."""

    tile: Tile
    objects: tuple[int, ...]


def windows(grid: Grid, found: Sequence[Merged]) -> list[Windowed]:
    """Return the windows for the objects that are cut and fit into one."""
    side, margin = grid.tiling.side, 2 * grid.tiling.margin
    waiting = [
        index
        for index, each in enumerate(found)
        if each.cut and max(_sides(each.extent)) <= side - 2 * margin
    ]
    planned: list[Windowed] = []
    while waiting:
        window = _window_around(grid, found[waiting[0]].extent)
        inside = [each for each in waiting if _is_inside(found[each].extent, window, grid, margin)]
        # The first one is: it is in the centre, or the window is at the edge of the image.
        inside = inside[:_MAX_PROMPTS] or waiting[:1]
        tile = Tile(_OUTSIDE_OF_GRID, _OUTSIDE_OF_GRID, window)
        planned.append(Windowed(tile, tuple(inside)))
        waiting = [each for each in waiting if each not in inside]
    return planned


def prompts(found: Sequence[Merged], windowed: Windowed) -> list[Prompt]:
    """Return a prompt for each object of a window, in pixels of the window."""
    left, top, _, _ = windowed.tile.window
    return [
        Prompt(
            points=[
                (x - left, y - top)
                for x, y in (piece.image_point for piece in found[index].pieces[:_MAX_POINTS])
            ]
        )
        for index in windowed.objects
    ]


def replacements(
    grid: Grid,
    found: Sequence[Merged],
    windowed: Windowed,
    results: Sequence[Sequence[Mask]],
    thresholds: Thresholds,
) -> dict[int, Merged]:
    """Return the objects of a window whose new mask is better, by their index."""
    better: dict[int, Merged] = {}
    for index, masks in zip(windowed.objects, results, strict=True):
        former = found[index]
        for mask in sorted(masks, key=lambda mask: -mask.predicted_iou):
            new = _piece(grid, windowed.tile, former, mask)
            if new is not None and _is_better(grid, new, former, thresholds):
                better[index] = Merged((new,))
                break
    return better


def _piece(grid: Grid, tile: Tile, former: Merged, mask: Mask) -> TileMask | None:
    """Return the regions of a mask that are connected to the former one; None if there are none."""
    if not mask.area:
        return None
    seeds = intervals.dense(former.pixels(grid), grid.size.height, tile.window)
    pixels = run_lengths.decode(CocoRle(tile.size, mask.counts))
    connected = regions.connected_to(pixels, seeds)
    if not connected.any():
        return None
    own = replace(mask, counts=run_lengths.encode(connected).counts)
    x, y = former.pieces[0].image_point
    return from_mask(grid, tile, own, (x - tile.window[0], y - tile.window[1]))


def _is_better(grid: Grid, new: TileMask, former: Merged, thresholds: Thresholds) -> bool:
    if new.cut or new.predicted_iou < former.predicted_iou - _WORSE:
        return False
    if new.predicted_iou <= thresholds.get("pred_iou_thresh", 0.0):
        return False
    if new.stability_score < thresholds.get("stability_score_thresh", 0.0):
        return False
    pixels = former.pixels(grid)
    common = intervals.intersection(pixels, new.pixels(grid.size))
    return common >= _CONTAINED * intervals.area(pixels)


def _window_around(grid: Grid, extent: Window) -> Window:
    spans = [
        _span((extent[axis] + extent[axis + 2]) // 2, grid.tiling.side, length)
        for axis, length in enumerate((grid.size.width, grid.size.height))
    ]
    (left, right), (top, bottom) = spans
    return left, top, right, bottom


def _span(centre: int, side: int, length: int) -> tuple[int, int]:
    start = min(max(centre - side // 2, 0), max(length - side, 0))
    return start, min(start + side, length)


def _is_inside(extent: Window, window: Window, grid: Grid, margin: int) -> bool:
    """Return whether there is a margin around an object, except where the image ends."""
    left, top, right, bottom = window
    return (
        extent[0] >= (left + margin if left else 0)
        and extent[1] >= (top + margin if top else 0)
        and extent[2] <= (right - margin if right < grid.size.width else right)
        and extent[3] <= (bottom - margin if bottom < grid.size.height else bottom)
    )


def _sides(window: Window) -> tuple[int, int]:
    return window[2] - window[0], window[3] - window[1]
