"""Which masks of neighbouring tiles are one object.

Tiles overlap, so that an object that is shorter than the overlap is whole in at least one of them.

1. Two masks of different tiles are one object if they agree where their tiles overlap: their IoU
   there is at least `_AGREEMENT`.  Pairs are joined in the order of their IoU.  A group has at most
   one mask of each tile, so that an error cannot join one object with another, or with the
   background, through a chain of tiles.
2. A group with masks that no edge cuts is the one of them with the highest predicted IoU.  Others
   are the union of their pixels: objects larger than the overlap, and the background.
3. What is cut is prompted again, see `refine`.
4. A cut mask that another tile sees whole, but did not find, is dropped: it is a part of an object.
5. Of two results with a mask IoU above `_DUPLICATE`, the one that no edge cuts is kept, or else the
   one with the higher predicted IoU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from samserve.annotate.tiles.masks import TileMask
from samserve.annotate.tiles.plan import Grid, Tile
from samserve.core import intervals
from samserve.core.intervals import Window
from samserve.core.run_lengths import IntArray
from samserve.types import Array

_AGREEMENT = 0.75
_DUPLICATE = 0.7
# Boxes of masks that agree differ by little; comparing boxes first saves most of the time.
_BOX_AGREEMENT = 0.5
_CACHED_MASKS = 512


@dataclass(frozen=True, slots=True, eq=False)
class Merged:
    """An object of the image: a single mask, or the union of masks that tiles have cut."""

    pieces: tuple[TileMask, ...]

    @property
    def cut(self) -> bool:
        """Whether no tile has seen it whole."""
        return any(piece.cut for piece in self.pieces)

    @property
    def extent(self) -> Window:
        """The smallest window with its pixels."""
        return _hull([piece.extent for piece in self.pieces])

    @property
    def crop(self) -> Window:
        """The smallest window with the tiles in which it was found."""
        return _hull([piece.tile.window for piece in self.pieces])

    def mean(self, values: Sequence[float]) -> float:
        """Return the mean of a value of each piece, weighted by their areas."""
        return float(np.average(values, weights=[piece.area for piece in self.pieces]))

    @property
    def predicted_iou(self) -> float:
        """Mean over the pieces, weighted by area."""
        return self.mean([piece.predicted_iou for piece in self.pieces])

    @property
    def stability_score(self) -> float:
        """Mean over the pieces, weighted by area."""
        return self.mean([piece.stability_score for piece in self.pieces])

    def pixels(self, grid: Grid) -> IntArray:
        """Return its pixels as intervals of the whole image."""
        return intervals.union([piece.pixels(grid.size) for piece in self.pieces])


def merge(grid: Grid, masks: Sequence[Sequence[TileMask]]) -> list[Merged]:
    """Return the objects of an image from the masks of each tile, in the order of the tiles.

    `cleaned` is to be called with them, after cut ones have been replaced.
    """
    return _Merge(grid, masks).run()


def cleaned(grid: Grid, found: Sequence[Merged]) -> list[Merged]:
    """Drop parts of objects, and all but the best of nearly equal ones; keep the order."""
    tiles = list(grid.tiles())
    return _without_duplicates(grid, [each for each in found if not _is_part(grid, tiles, each)])


def _is_part(grid: Grid, tiles: Sequence[Tile], found: Merged) -> bool:
    """Return whether it is a cut mask of one tile that another tile sees whole."""
    if len(found.pieces) > 1 or not found.cut:
        return False
    (piece,) = found.pieces
    return any(
        tile != piece.tile
        and _common(tile.window, piece.extent) == piece.extent
        and not grid.cut_edges(tile, piece.extent)
        for tile in tiles
    )


def _without_duplicates(grid: Grid, found: Sequence[Merged]) -> list[Merged]:
    order = sorted(
        range(len(found)), key=lambda each: (found[each].cut, -found[each].predicted_iou)
    )
    boxes = np.array([found[each].extent for each in order], dtype=np.float64).reshape(-1, 4)
    dropped: set[int] = set()
    for rank, best in enumerate(order):
        if best in dropped:
            continue
        near = np.flatnonzero(_box_ious(boxes[rank : rank + 1], boxes[rank + 1 :])[0] > 0.5)
        for other in (order[rank + 1 + index] for index in near.tolist()):
            if other not in dropped and _iou_of(grid, found[best], found[other]) > _DUPLICATE:
                dropped.add(other)
    return [each for index, each in enumerate(found) if index not in dropped]


class _Merge:
    """The groups of masks of one image: a forest, whose roots know the tiles of their group."""

    def __init__(self, grid: Grid, masks: Sequence[Sequence[TileMask]]) -> None:
        self._grid = grid
        self._tiles = list(grid.tiles())
        self._masks = [mask for of_tile in masks for mask in of_tile]
        self._numbers: dict[Tile, list[int]] = {tile: [] for tile in self._tiles}
        for number, mask in enumerate(self._masks):
            self._numbers[mask.tile].append(number)
        self._parent = list(range(len(self._masks)))
        self._members = {number: {mask.tile} for number, mask in enumerate(self._masks)}
        self._pixels = lru_cache(maxsize=_CACHED_MASKS)(self._decode)

    def run(self) -> list[Merged]:
        pairs = [pair for tiles in self._overlapping() for pair in self._agreeing(*tiles)]
        for _, first, second in sorted(pairs, key=lambda pair: -pair[0]):
            self._join(first, second)
        groups: dict[int, list[int]] = {}
        for number in range(len(self._masks)):
            groups.setdefault(self._root(number), []).append(number)
        return [self._merged([self._masks[each] for each in group]) for group in groups.values()]

    def _overlapping(self) -> Iterator[tuple[Tile, Tile]]:
        """Yield pairs of tiles that share pixels."""
        at = {(tile.row, tile.column): tile for tile in self._tiles}
        later = [(0, 1), (0, 2), *((down, right) for down in (1, 2) for right in range(-2, 3))]
        for tile in self._tiles:
            for down, right in later:
                other = at.get((tile.row + down, tile.column + right))
                if other is not None and _is_window(_common(tile.window, other.window)):
                    yield tile, other

    def _agreeing(self, first: Tile, second: Tile) -> Iterator[tuple[float, int, int]]:
        """Yield pairs of masks of two tiles that agree in their overlap, with their IoU there."""
        strip = _common(first.window, second.window)
        ours, theirs = (self._in_strip(tile, strip) for tile in (first, second))
        if not (ours and theirs):
            return
        boxes = [
            np.array([_common(self._masks[each].extent, strip) for each in numbers], np.float64)
            for numbers in (ours, theirs)
        ]
        near = np.argwhere(_box_ious(boxes[0], boxes[1]) > _BOX_AGREEMENT)
        for one, other in near.tolist():
            iou = self._strip_iou(ours[one], theirs[other], strip)
            if iou >= _AGREEMENT:
                yield iou, ours[one], theirs[other]

    def _in_strip(self, tile: Tile, strip: Window) -> list[int]:
        numbers = self._numbers[tile]
        return [each for each in numbers if _is_window(_common(self._masks[each].extent, strip))]

    def _strip_iou(self, first: int, second: int, strip: Window) -> float:
        height = self._grid.size.height
        parts = [
            intervals.clipped(self._pixels(number), height, strip) for number in (first, second)
        ]
        return _iou(*parts)

    def _decode(self, number: int) -> IntArray:
        return self._masks[number].pixels(self._grid.size)

    def _root(self, number: int) -> int:
        while self._parent[number] != number:
            self._parent[number] = self._parent[self._parent[number]]
            number = self._parent[number]
        return number

    def _join(self, first: int, second: int) -> None:
        """Join two groups, unless both have a mask of the same tile."""
        first, second = self._root(first), self._root(second)
        if first == second or self._members[first] & self._members[second]:
            return
        self._parent[second] = first
        self._members[first] |= self._members.pop(second)

    def _merged(self, group: list[TileMask]) -> Merged:
        whole = [mask for mask in group if not mask.cut]
        if whole:
            return Merged((max(whole, key=lambda mask: mask.predicted_iou),))
        return Merged(tuple(group))


def _iou_of(grid: Grid, first: Merged, second: Merged) -> float:
    return _iou(first.pixels(grid), second.pixels(grid))


def _iou(first: IntArray, second: IntArray) -> float:
    both = intervals.intersection(first, second)
    either = intervals.area(first) + intervals.area(second) - both
    return both / either if either else 0.0


def _box_ious(first: Array, second: Array) -> Array:
    """Return the IoU of boxes ``[n, 4]`` with boxes ``[m, 4]``: float64 ``[n, m]``."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    both = np.prod(np.clip(high - low, 0, None), axis=2)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (first, second)]
    return np.asarray(both / (areas[0][:, None] + areas[1][None] - both))


def _common(first: Window, second: Window) -> Window:
    return (
        max(first[0], second[0]),
        max(first[1], second[1]),
        min(first[2], second[2]),
        min(first[3], second[3]),
    )


def _is_window(window: Window) -> bool:
    return window[0] < window[2] and window[1] < window[3]


def _hull(windows: Sequence[Window]) -> Window:
    left, top, right, bottom = zip(*windows, strict=True)
    return min(left), min(top), max(right), max(bottom)
