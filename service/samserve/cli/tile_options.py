"""The command-line options of tiles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from samserve.cli.errors import UsageError

if TYPE_CHECKING:
    from samserve.annotate.tiles.plan import Tiling
    from samserve.annotate.tiles.segmenter import TileSegmenter
    from samserve.client import AutoMaskOptions, Model
    from samserve.errors import InvalidRequest

_OVERLAP = 8
"""The default overlap is the side of a tile divided by this."""


@dataclass(frozen=True, slots=True)
class TileFlags:
    """How images are cut into tiles; without a side, they are not."""

    help_panel: ClassVar[str] = "Large images"

    tile: Annotated[
        int | None,
        typer.Option(
            "--tile",
            metavar="SIZE",
            help="Read images in square tiles of this side in pixels: for images over the limits "
            "of the server, and for objects that are small in them.",
        ),
    ] = None
    overlap: Annotated[
        int | None,
        typer.Option(
            "--overlap",
            metavar="PIXELS",
            help="Least overlap of neighbouring tiles; objects that are shorter are whole in one "
            "of them. From SIZE/16 to SIZE/2. Default: SIZE/8.",
        ),
    ] = None

    def tiling(self) -> Tiling | None:
        """Return the tiling, None without ``--tile``.  Raises `UsageError`."""
        from samserve.annotate.tiles.plan import Tiling
        from samserve.errors import InvalidRequest

        if self.tile is None:
            if self.overlap is not None:
                raise UsageError("--overlap requires --tile")
            return None
        overlap = self.tile // _OVERLAP if self.overlap is None else self.overlap
        try:
            return Tiling(self.tile, overlap)
        except InvalidRequest as error:
            raise usage_error(error) from error


@dataclass(frozen=True, slots=True)
class GeoJsonFlags:
    """Whether GeoJSON files are written."""

    help_panel: ClassVar[str] = "Large images"

    geojson: Annotated[
        bool | None,
        typer.Option(
            "--geojson/--no-geojson",
            help="With --tile: write a GeoJSON file for each image. Default: for images with "
            "coordinates, such as GeoTIFF.",
        ),
    ] = None


def segmenter(
    model: Model,
    limits: Mapping[str, int],
    options: AutoMaskOptions,
    tiling: Tiling,
    out: str,
    flags: GeoJsonFlags,
) -> TileSegmenter:
    """Return the segmenter of a run.  Raises `UsageError` for tiles that the server rejects."""
    from samserve.annotate.tiles.segmenter import TileSegmenter
    from samserve.errors import InvalidRequest

    try:
        tiling.check_limits(limits)
        return TileSegmenter.of(model, tiling, out, options, with_geojson=flags.geojson)
    except InvalidRequest as error:
        raise usage_error(error) from error


def usage_error(error: InvalidRequest) -> UsageError:
    """Return the error of an option for the one of a field of tiles."""
    field, text = error.violations[0]
    names = {"image": "IMAGE", "prompts": "prompt", "region_of_interest": "--roi"}
    return UsageError(f"{names.get(field, f'--{field}')}: {text}")
