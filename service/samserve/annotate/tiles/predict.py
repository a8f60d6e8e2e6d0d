"""Predict on images of any size: each prompt in the tile that suits it best."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import TypedDict, Unpack

from samserve.annotate.source import ImageFile, Source
from samserve.annotate.tiles.opening import open_image
from samserve.annotate.tiles.plan import Grid, Tile, Tiling
from samserve.annotate.tiles.reader import TileReader
from samserve.client import Client, HqMode, Mask, Multimask, Prediction, Prompt
from samserve.core import intervals
from samserve.errors import InvalidRequest
from samserve.types import CocoRle, Size, UInt8Array


class PredictOptions(TypedDict, total=False):
    """Options of `Client.predict` that have a meaning for tiles."""

    model: str
    multimask: Multimask
    hq_mode: HqMode | None
    min_island_area: int
    min_hole_area: int
    clip_to_box: bool


async def predict(
    client: Client,
    source: Source,
    image: ImageFile,
    tiling: Tiling,
    prompts: Sequence[Prompt],
    **options: Unpack[PredictOptions],
) -> list[Prediction]:
    """Segment one object for each prompt; return a prediction for each, of that prompt alone.

    Prompts and masks, which are COCO's run lengths, are in pixels of the whole image; embeddings
    and low-resolution logits are those of tiles.  A tile is one of the grid of `TileSegmenter`, so
    its embedding may be in the cache.  Raises `InvalidRequest` for an image that cannot be read,
    tiles over a limit of the server, and a prompt that is outside of the image, in no tile as a
    whole, or has a mask; and as `Client.predict` does.
    """
    for prompt in prompts:
        if prompt.mask is not None:
            raise InvalidRequest("prompts", "has a mask, which cannot be used with tiles")
    tiling.check_limits((await client.models()).limits)
    with ThreadPoolExecutor(1) as thread, ExitStack() as stack:
        loop = asyncio.get_running_loop()
        opening = open_image(source, image)
        reader = await loop.run_in_executor(thread, opening.__enter__)
        stack.callback(lambda: thread.submit(opening.__exit__, None, None, None).result())
        grid = Grid(reader.size, tiling)
        tiles = [grid.best_tile(prompt) for prompt in prompts]
        found: list[Prediction] = []
        for tile, prompt in zip(tiles, prompts, strict=True):
            rgb = await loop.run_in_executor(thread, _read, reader, tile)
            prediction = await client.predict(rgb, [_in_tile(prompt, tile)], **options)
            found.append(await asyncio.to_thread(_in_image, prediction, tile, grid.size))
        return found


def _read(reader: TileReader, tile: Tile) -> UInt8Array:
    return reader.read(tile.window).rgb


def _in_tile(prompt: Prompt, tile: Tile) -> Prompt:
    left, top, _, _ = tile.window
    points = [(point[0] - left, point[1] - top, *point[2:]) for point in prompt.points]
    box = prompt.box
    if box is not None:
        box = (box[0] - left, box[1] - top, box[2] - left, box[3] - top)
    return Prompt(points=points, box=box)


def _in_image(prediction: Prediction, tile: Tile, image: Size) -> Prediction:
    """Return a prediction of a tile in the frame of the image."""
    results = [[_moved(mask, tile, image) for mask in masks] for masks in prediction.results]
    return replace(prediction, results=results)


def _moved(mask: Mask, tile: Tile, image: Size) -> Mask:
    left, top, _, _ = tile.window
    own = intervals.from_rle(CocoRle(tile.size, mask.counts))
    placed = intervals.to_rle(intervals.shifted(own, tile.size, left, top, image), image)
    x, y, width, height = mask.bbox
    box = (x + left, y + top, width, height) if mask.area else mask.bbox
    return replace(mask, size=(image.height, image.width), counts=placed.counts, bbox=box)
