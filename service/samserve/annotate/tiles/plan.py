"""Where the tiles of an image are, and which one a prompt belongs to."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from samserve.client import Prompt
from samserve.core.intervals import Window
from samserve.errors import InvalidRequest
from samserve.types import Size

MAX_PIXELS = 2**31 - 1
"""Pixels of the largest image: those that COCO's run lengths can describe."""
_MIN_SIZE = 64
_BYTES_PER_PIXEL = 3


@dataclass(frozen=True, slots=True)
class Tiling:
    """The side of a tile and the least overlap of neighbours, in pixels.

    Raises `InvalidRequest` unless the overlap is from 1/16 to 1/2 of the side.
    """

    side: int
    overlap: int

    def __post_init__(self) -> None:
        if self.side < _MIN_SIZE:
            raise InvalidRequest("tile", f"is {self.side} pixels, the minimum is {_MIN_SIZE}")
        least, most = self.side // 16, self.side // 2
        if not least <= self.overlap <= most:
            raise InvalidRequest(
                "overlap",
                f"is {self.overlap} pixels; for tiles of {self.side} it must be from {least}, "
                f"which seams need, to {most}",
            )

    @property
    def margin(self) -> int:
        """Distance in pixels from an edge of a tile within which a mask counts as cut by it."""
        return max(self.side // 100, 2)

    def check_limits(self, limits: Mapping[str, int]) -> None:
        """Raise `InvalidRequest` if a server with these limits does not take such tiles."""
        pixels = self.side**2
        sent = pixels * _BYTES_PER_PIXEL
        for actual, name in (
            (self.side, "max_image_side"),
            (pixels, "max_image_pixels"),
            (sent, "max_request_bytes"),
        ):
            limit = limits.get(name, 0)
            if limit and actual > limit:
                raise InvalidRequest(
                    "tile",
                    f"of {self.side} pixels exceeds the server's limits.{name}: "
                    f"{actual}, the limit is {limit}",
                )


@dataclass(frozen=True, slots=True)
class Tile:
    """A tile of an image: its place in the grid, and its window in image pixels."""

    row: int
    column: int
    window: Window

    @property
    def size(self) -> Size:
        """Height and width."""
        left, top, right, bottom = self.window
        return Size(bottom - top, right - left)


@dataclass(frozen=True, slots=True)
class Grid:
    """The tiles of an image: of equal size, evenly spread, the fewest that the overlap permits.

    A function of the size of the image and of the tiling only.  Raises `InvalidRequest` for an
    image of more than `MAX_PIXELS`.
    """

    size: Size
    tiling: Tiling

    def __post_init__(self) -> None:
        if not 0 < self.size.pixels <= MAX_PIXELS:
            raise InvalidRequest(
                "image",
                f"has {self.size.width} x {self.size.height} pixels; run lengths describe at most "
                f"2**31-1 pixels: cut it into several files",
            )

    def tiles(self) -> Iterator[Tile]:
        """Yield the tiles, row by row."""
        for row, (top, bottom) in enumerate(self._spans(self.size.height)):
            for column, (left, right) in enumerate(self._spans(self.size.width)):
                yield Tile(row, column, (left, top, right, bottom))

    def cut_edges(self, tile: Tile, extent: Window) -> bool:
        """Return whether a mask with this extent reaches an edge that is not the image's."""
        margin = self.tiling.margin
        left, top, right, bottom = tile.window
        return (
            (left > 0 and extent[0] < left + margin)
            or (top > 0 and extent[1] < top + margin)
            or (right < self.size.width and extent[2] > right - margin)
            or (bottom < self.size.height and extent[3] > bottom - margin)
        )

    def best_tile(self, prompt: Prompt) -> Tile:
        """Return the tile for a prompt: of those with all of it, the one with the nearest centre.

        The same tiles as those of an earlier AutoMask, so that embeddings are found in the cache.
        Raises `InvalidRequest` for a prompt outside of the image or larger than every tile.
        """
        left, top, right, bottom = prompt_extent(prompt)
        if left < 0 or top < 0 or right > self.size.width or bottom > self.size.height:
            raise InvalidRequest(
                "prompts", f"is outside of the image of {self.size.width} x {self.size.height}"
            )
        centre = (left + right) / 2, (top + bottom) / 2
        fitting = [
            tile
            for tile in self.tiles()
            if tile.window[0] <= left
            and tile.window[1] <= top
            and tile.window[2] >= right
            and tile.window[3] >= bottom
        ]
        if not fitting:
            longest = math.ceil(max(right - left, bottom - top))
            raise InvalidRequest(
                "prompts",
                f"needs {longest} pixels, and no tile contains all of it: use --tile with at least "
                f"{2 * longest} and --overlap with at least {longest}",
            )
        return min(fitting, key=lambda tile: _distance(tile.window, centre))

    def _spans(self, length: int) -> list[tuple[int, int]]:
        """Return start and end of the tiles along one side."""
        side, overlap = self.tiling.side, self.tiling.overlap
        if length <= side:
            return [(0, length)]
        count = math.ceil((length - overlap) / (side - overlap))
        starts = [round(index * (length - side) / (count - 1)) for index in range(count)]
        return [(start, start + side) for start in starts]


def prompt_extent(prompt: Prompt) -> tuple[float, float, float, float]:
    """Return the smallest box with the points and the box of a prompt, XYXY."""
    points = [(float(point[0]), float(point[1])) for point in prompt.points]
    if prompt.box is not None:
        points += [(prompt.box[0], prompt.box[1]), (prompt.box[2], prompt.box[3])]
    if not points:
        raise InvalidRequest("prompts", "has neither points nor a box, which select the tile")
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def _distance(window: Window, centre: tuple[float, float]) -> float:
    left, top, right, bottom = window
    return math.hypot((left + right) / 2 - centre[0], (top + bottom) / 2 - centre[1])
