"""The masks that a tile has returned, in the frame of the whole image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from samserve.annotate.tiles.plan import Grid, Tile
from samserve.client import AutoMaskRecord, Mask
from samserve.core import intervals
from samserve.core.intervals import Window
from samserve.core.run_lengths import IntArray
from samserve.types import CocoRle, Size


@dataclass(frozen=True, slots=True)
class TileMask:
    """A mask of a tile: ``counts`` are COCO's of the tile, ``extent`` is in image pixels.

    ``cut`` is whether it reaches an edge of the tile behind which the image continues.
    """

    tile: Tile
    counts: str
    extent: Window
    area: int
    cut: bool
    predicted_iou: float
    stability_score: float
    point: tuple[float, float]

    def pixels(self, image: Size) -> IntArray:
        """Return its pixels as intervals of the whole image, see `samserve.core.intervals`."""
        size = self.tile.size
        own = intervals.from_rle(CocoRle(size, self.counts))
        return intervals.shifted(own, size, self.tile.window[0], self.tile.window[1], image)

    @property
    def image_point(self) -> tuple[float, float]:
        """The prompted grid point in image pixels."""
        return self.point[0] + self.tile.window[0], self.point[1] + self.tile.window[1]

    def common_area(self, others: IntArray) -> int:
        """Return its number of pixels that are also in intervals of its tile."""
        return intervals.intersection(
            intervals.from_rle(CocoRle(self.tile.size, self.counts)), others
        )


def from_records(grid: Grid, tile: Tile, records: Sequence[AutoMaskRecord]) -> list[TileMask]:
    """Return the masks of a tile, which the server has returned as COCO's run lengths."""
    return [from_mask(grid, tile, each.mask, each.point) for each in records if each.mask.area > 0]


def from_mask(grid: Grid, tile: Tile, mask: Mask, point: tuple[float, float]) -> TileMask:
    """Return a mask of a tile that is not empty, with its point in pixels of the tile."""
    value = {
        "counts": mask.counts,
        "predicted_iou": mask.predicted_iou,
        "stability_score": mask.stability_score,
        "point": point,
    }
    return _mask(grid, tile, value)


def to_json(masks: Sequence[TileMask]) -> list[dict[str, Any]]:
    """Return the masks of one tile as JSON values."""
    return [
        {
            "counts": each.counts,
            "predicted_iou": each.predicted_iou,
            "stability_score": each.stability_score,
            "point": list(each.point),
        }
        for each in masks
    ]


def from_json(grid: Grid, tile: Tile, values: Sequence[dict[str, Any]]) -> list[TileMask]:
    """Return masks from the values of `to_json`.

    Raises ``ValueError``, ``LookupError`` or ``TypeError`` for others.
    """
    return [_mask(grid, tile, value) for value in values]


def _mask(grid: Grid, tile: Tile, value: dict[str, Any]) -> TileMask:
    left, top, _, _ = tile.window
    own = intervals.from_rle(CocoRle(tile.size, value["counts"]))
    x_min, y_min, x_max, y_max = intervals.extent(own, tile.size.height)
    extent = (x_min + left, y_min + top, x_max + left, y_max + top)
    x, y = value["point"]
    return TileMask(
        tile=tile,
        counts=value["counts"],
        extent=extent,
        area=intervals.area(own),
        cut=grid.cut_edges(tile, extent),
        predicted_iou=float(value["predicted_iou"]),
        stability_score=float(value["stability_score"]),
        point=(float(x), float(y)),
    )
