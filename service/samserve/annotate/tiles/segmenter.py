"""Annotating large images: AutoMask for each tile, masks merged over the seams."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, TypeVar

from samserve.annotate.automask import AutoMaskSegmenter
from samserve.annotate.gateways import Gateways
from samserve.annotate.outputs import Output
from samserve.annotate.parallel import in_parallel
from samserve.annotate.records import record_key
from samserve.annotate.tiles import geojson, masks, merge, refine
from samserve.annotate.tiles.finished import FinishedTiles
from samserve.annotate.tiles.masks import TileMask
from samserve.annotate.tiles.merge import Merged
from samserve.annotate.tiles.opening import open_image
from samserve.annotate.tiles.plan import Grid, Tile, Tiling
from samserve.annotate.tiles.reader import Pixels, TileReader
from samserve.annotate.tiles.refine import Windowed
from samserve.annotate.types import LoadedImage, Segmented
from samserve.client import AutoMaskOptions, Model
from samserve.core import intervals
from samserve.datasets.types import Annotation
from samserve.errors import InvalidRequest
from samserve.system.malloc import return_large_buffers

T = TypeVar("T")

VERSION = 1
"""Of the rules for tiles and their merging; records of another version are made again."""
_UNDER_WAY = 2
"""Tiles under way for each gateway, so that one is sent while another is decoded."""
_UNSUPPORTED = ("region_of_interest", "exclude")


@dataclass(frozen=True, slots=True)
class TileSegmenter:
    """Segments everything in images of any size.  Picklable.

    ``options`` are those of `Client.automask`, for each tile; ``out`` is the output of the run.
    GeoJSON is written for georeferenced images if ``geojson`` is None, else for all or none.
    Raises `InvalidRequest` for an option that concerns the whole image.
    """

    model: str
    digest: str
    tiling: Tiling
    out: str
    options: AutoMaskOptions = field(default_factory=AutoMaskOptions)
    defaults: Mapping[str, float] = field(default_factory=dict)
    geojson: bool | None = None

    def __post_init__(self) -> None:
        for name in _UNSUPPORTED:
            if name in self.options:
                raise InvalidRequest(name, "is of a whole image, and cannot be used with tiles")

    @classmethod
    def of(
        cls,
        model: Model,
        tiling: Tiling,
        out: str,
        options: AutoMaskOptions,
        *,
        with_geojson: bool | None = None,
    ) -> TileSegmenter:
        """Return the segmenter of a served model."""
        defaults = dict(model.automask_defaults)
        return cls(model.name, model.digest, tiling, out, options, defaults, with_geojson)

    @property
    def windowed(self) -> bool:
        """True: images are read in windows."""
        return True

    def fingerprint(self, name: str) -> Mapping[str, Any]:
        """Return all options, the same for every image."""
        return {**self.masks_fingerprint(name), "geojson": self.geojson}

    def masks_fingerprint(self, name: str) -> Mapping[str, Any]:
        """Return the options that the masks of tiles depend on."""
        whole = AutoMaskSegmenter(self.model, self.options, self.defaults).fingerprint(name)
        tiles = {"version": VERSION, "side": self.tiling.side, "overlap": self.tiling.overlap}
        return {**whole, "tiles": tiles}

    async def segment(self, gateways: Gateways, image: LoadedImage) -> Segmented:
        """Return the masks of an image, whose tiles are kept until its record is written.

        Raises `InvalidRequest` for an image that cannot be read, and for tiles over a limit of the
        server.
        """
        self.tiling.check_limits((await gateways.models()).limits)
        return_large_buffers()
        # GDAL's datasets are used by the thread that has opened them.
        with ThreadPoolExecutor(1) as thread, ExitStack() as stack:
            loop = asyncio.get_running_loop()
            opening = open_image(image.source, image.file)
            reader = await loop.run_in_executor(thread, opening.__enter__)
            stack.callback(lambda: thread.submit(opening.__exit__, None, None, None).result())
            return await _Image(self, gateways, image, reader, thread).segment()


class _Image:
    """One image that is being annotated."""

    def __init__(
        self,
        settings: TileSegmenter,
        gateways: Gateways,
        image: LoadedImage,
        reader: TileReader,
        thread: ThreadPoolExecutor,
    ) -> None:
        self._settings, self._gateways, self._image = settings, gateways, image
        self._reader, self._thread = reader, thread
        self._grid = Grid(reader.size, settings.tiling)
        fingerprint = settings.masks_fingerprint(image.file.name)
        key = record_key(image.sha256, settings.digest, fingerprint)
        self._finished = FinishedTiles(Output(settings.out), key, self._grid)
        self._found: dict[Tile, list[TileMask]] = {}

    async def segment(self) -> Segmented:
        await in_parallel(self._grid.tiles(), self._tile, _UNDER_WAY * len(self._gateways))
        in_order = [self._found[tile] for tile in self._grid.tiles()]
        groups = await asyncio.to_thread(merge.merge, self._grid, in_order)
        refined = await self._refined(groups)
        merged = await asyncio.to_thread(merge.cleaned, self._grid, refined)
        annotations = await asyncio.to_thread(self._annotations, merged)
        if self._wants_geojson():
            await asyncio.to_thread(self._write_geojson, merged)
        return Segmented(self._grid.size, annotations, on_written=self._finished.remove)

    async def _tile(self, tile: Tile) -> None:
        kept = await asyncio.to_thread(self._finished.read, tile)
        if kept is None:
            kept = await self._annotated(tile)
            await asyncio.to_thread(self._finished.write, tile, kept)
        self._found[tile] = kept

    async def _annotated(self, tile: Tile) -> list[TileMask]:
        loop = asyncio.get_running_loop()
        pixels = await loop.run_in_executor(self._thread, self._reader.read, tile.window)
        if pixels.empty:
            return []
        settings = self._settings
        result = await self._gateways.call(
            lambda client: client.automask_all(
                pixels.rgb, model=settings.model, mask_format="coco_rle", **settings.options
            )
        )
        return await asyncio.to_thread(self._with_data, tile, result.records, pixels)

    async def _refined(self, groups: Sequence[Merged]) -> list[Merged]:
        """Return the objects, with better masks of those that are cut."""
        refined = list(groups)
        settings = self._settings
        thresholds: dict[str, Any] = {**settings.defaults, **settings.options}
        hq_mode = settings.options.get("hq_mode")
        # What AutoMask does with its masks.
        area = settings.options.get("min_mask_region_area", 0)

        async def prompt(each: Windowed) -> None:
            loop = asyncio.get_running_loop()
            pixels = await loop.run_in_executor(self._thread, self._reader.read, each.tile.window)
            prompts = refine.prompts(groups, each)
            result = await self._gateways.call(
                lambda client: client.predict(
                    pixels.rgb,
                    prompts,
                    model=settings.model,
                    hq_mode=hq_mode,
                    min_island_area=area,
                    min_hole_area=area,
                )
            )
            better = await asyncio.to_thread(
                refine.replacements, self._grid, groups, each, result.results, thresholds
            )
            for index, new in better.items():
                refined[index] = new

        windows = await asyncio.to_thread(refine.windows, self._grid, groups)
        await in_parallel(windows, prompt, _UNDER_WAY * len(self._gateways))
        return refined

    def _with_data(self, tile: Tile, records: Any, pixels: Pixels) -> list[TileMask]:
        """Return the masks of a tile at least half of whose pixels have data."""
        found = masks.from_records(self._grid, tile, records)
        if pixels.valid is None:
            return found
        valid = intervals.from_mask(pixels.valid)
        return [each for each in found if 2 * each.common_area(valid) >= each.area]

    def _annotations(self, merged: list[Merged]) -> tuple[Annotation, ...]:
        return tuple(self._annotation(each) for each in merged)

    def _annotation(self, each: Merged) -> Annotation:
        pixels = each.pixels(self._grid)
        return Annotation(
            intervals.to_rle(pixels, self._grid.size),
            area=intervals.area(pixels),
            box=_reference_box(each.extent),
            predicted_iou=each.predicted_iou,
            stability_score=each.stability_score,
            point_coords=tuple(piece.image_point for piece in each.pieces),
            crop_box=_xywh(each.crop),
        )

    def _wants_geojson(self) -> bool:
        wanted = self._settings.geojson
        return self._reader.reference is not None if wanted is None else wanted

    def _write_geojson(self, merged: list[Merged]) -> None:
        name, output = self._image.file.name, Output(self._settings.out)
        geojson.write(output, name, self._grid, merged, self._reader.reference)


def _xywh(window: intervals.Window) -> tuple[float, float, float, float]:
    left, top, right, bottom = window
    return float(left), float(top), float(right - left), float(bottom - top)


def _reference_box(extent: intervals.Window) -> tuple[float, float, float, float]:
    """Return a box as servers do: its width is the difference of the inclusive extreme pixels."""
    left, top, width, height = _xywh(extent)
    return left, top, width - 1, height - 1
