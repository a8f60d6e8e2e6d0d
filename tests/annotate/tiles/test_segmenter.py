"""Images in tiles, on a real server with the fake engine."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import rasterio
from PIL import Image
from rasterio.transform import Affine
from samserve.annotate.gateways import Gateways
from samserve.annotate.source import ImageFile, Source
from samserve.annotate.tiles.plan import Grid, Tiling
from samserve.annotate.tiles.predict import predict
from samserve.annotate.tiles.segmenter import TileSegmenter
from samserve.client import AutoMaskOptions, Client, Model, Prompt
from samserve.core import intervals, rle
from samserve.errors import InvalidRequest, Misconfigured
from samserve.types import CocoRle, Size

from tests.annotate.serving import annotate, mask_of, records_of
from tests.conftest import serving

SIZE = Size(200, 300)
TILING = Tiling(128, 32)
OPTIONS: AutoMaskOptions = {
    "points_per_side": 3,
    "pred_iou_thresh": 0.0,
    "stability_score_thresh": 0.0,
}


class Counted(Gateways):
    """Counts calls; *fail_after* so many, they raise."""

    def __init__(self, client: Client) -> None:
        super().__init__([client])
        self.count = 0
        self.fail_after = 1 << 30

    async def call(self, use: Callable[[Client], Awaitable[Any]]) -> Any:
        self.count += 1
        if self.count > self.fail_after:
            raise Misconfigured("the run ends here")
        return await super().call(use)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client() -> AsyncIterator[Client]:
    async with serving() as (running, _), Client(running.address) as opened:
        yield opened


pytestmark = pytest.mark.asyncio(loop_scope="module")


def write_image(path: Path, size: Size = SIZE) -> Path:
    path.parent.mkdir(exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (size.height, size.width, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def tiles_in(out: Path, **changes: Any) -> Callable[[Model, Mapping[str, int]], TileSegmenter]:
    return lambda model, limits: TileSegmenter.of(model, TILING, str(out), OPTIONS, **changes)


async def test_an_image_has_one_record_with_masks_in_its_own_frame(
    client: Client, tmp_path: Path
) -> None:
    write_image(tmp_path / "in" / "a.png")
    gateways, out = Counted(client), tmp_path / "out"

    summary = await annotate(gateways, tmp_path / "in", out, tiles_in(out))

    assert (summary.annotated, summary.failures) == (1, [])
    record = json.loads((out / "records" / "a.png.json").read_bytes())
    assert (record["image"]["height"], record["image"]["width"]) == (SIZE.height, SIZE.width)
    assert len(record["annotations"]) == summary.masks > 0
    grid = Grid(SIZE, TILING)
    assert gateways.count >= len(list(grid.tiles())) == 6
    for each in record["annotations"]:
        mask = rle.decode(CocoRle(SIZE, each["segmentation"]["counts"]))
        assert mask.sum() == each["area"]
        rows, columns = np.nonzero(mask)
        left, top, width, height = each["bbox"]
        assert (left, left + width) == (columns.min(), columns.max())
        assert (top, top + height) == (rows.min(), rows.max())
        left, top, width, height = each["crop_box"]
        for x, y in each["point_coords"]:
            assert left <= x <= left + width
            assert top <= y <= top + height
    assert not (out / "tiles").exists() or not list((out / "tiles").iterdir())
    assert not (out / "geojson").exists()

    again = await annotate(gateways, tmp_path / "in", out, tiles_in(out))

    assert (again.annotated, again.unchanged) == (0, 1)


async def test_a_run_that_ends_within_an_image_continues_there(
    client: Client, tmp_path: Path
) -> None:
    write_image(tmp_path / "in" / "a.png")
    out, other = tmp_path / "out", tmp_path / "other"
    gateways = Counted(client)
    gateways.fail_after = 4
    ended = await annotate(gateways, tmp_path / "in", out, tiles_in(out))
    assert ended.aborted == "the run ends here"
    kept = list((out / "tiles").rglob("*.json"))
    assert 1 <= len(kept) < 6
    # One that was cut off is not used.
    kept[0].write_text(kept[0].read_text()[:-5])

    continued = Counted(client)
    await annotate(continued, tmp_path / "in", out, tiles_in(out))
    undisturbed = Counted(client)
    await annotate(undisturbed, tmp_path / "in", other, tiles_in(other))

    assert continued.count == undisturbed.count - (len(kept) - 1)
    first, second = (records_of(folder)["a.png"] for folder in (out, other))
    assert first.annotations == second.annotations
    assert list((out / "tiles").iterdir()) == []


async def test_tiles_without_data_are_not_sent(client: Client, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    pixels = np.full((3, SIZE.height, SIZE.width), 7, np.uint8)
    # Only the first tile has data, without its lower part.
    pixels[:, 60:] = pixels[:, :, 80:] = 0
    with rasterio.open(
        tmp_path / "in" / "a.tif",
        "w",
        driver="GTiff",
        dtype="uint8",
        count=3,
        width=SIZE.width,
        height=SIZE.height,
        nodata=0,
        crs="EPSG:32633",
        transform=Affine(1, 0, 10, 0, -1, 20),
    ) as file:
        file.write(pixels)
    gateways, out = Counted(client), tmp_path / "out"

    await annotate(gateways, tmp_path / "in", out, tiles_in(out))

    (record,) = records_of(out).values()
    for each in record.annotations:
        mask = mask_of(each)
        assert 2 * mask[:60, :80].sum() >= mask.sum()
    assert gateways.count <= 2  # the tile, and what it has cut
    content = json.loads((out / "geojson" / "a.tif.geojson").read_text())
    assert len(content["features"]) == len(record.annotations)


async def test_geojson_is_written_on_request_and_not_against_it(
    client: Client, tmp_path: Path
) -> None:
    write_image(tmp_path / "in" / "a.png", Size(64, 64))
    for wanted in (True, False, None):
        out = tmp_path / str(wanted)
        await annotate(Counted(client), tmp_path / "in", out, tiles_in(out, with_geojson=wanted))
        assert (out / "geojson" / "a.png.geojson").exists() is (wanted is True)


async def test_what_concerns_the_whole_image_and_broken_files_are_invalid(
    client: Client, tmp_path: Path
) -> None:
    write_image(tmp_path / "in" / "a.png", Size(64, 64))
    (tmp_path / "in" / "broken.tif").write_bytes(b"II*\0nothing")
    (model,) = (await client.models()).models
    options: AutoMaskOptions = {**OPTIONS, "region_of_interest": (0, 0, 10, 10)}
    with pytest.raises(InvalidRequest, match="region_of_interest: is of a whole image"):
        TileSegmenter.of(model, TILING, str(tmp_path), options)
    out = tmp_path / "out"

    summary = await annotate(Counted(client), tmp_path / "in", out, tiles_in(out))

    assert summary.annotated == 1
    (failure,) = summary.failures
    assert failure.name == "broken.tif"


async def test_predict_answers_in_pixels_of_the_whole_image(client: Client, tmp_path: Path) -> None:
    path = write_image(tmp_path / "in" / "a.png")
    source, image = Source(str(path)), ImageFile(str(path), path.name)
    tile = Grid(SIZE, TILING).best_tile(Prompt(points=[(250, 150)]))
    left, top, right, bottom = tile.window
    assert (left, top) != (0, 0)
    prompt = Prompt(points=[(250, 150)], box=(200, 100, 290, 190))

    (found,) = await predict(client, source, image, TILING, [prompt])
    (again,) = await predict(client, source, image, TILING, [prompt])

    pixels = np.asarray(Image.open(path))[top:bottom, left:right]
    moved = Prompt(
        points=[(250 - left, 150 - top)],
        box=(200 - left, 100 - top, 290 - left, 190 - top),
    )
    expected = await client.predict(np.ascontiguousarray(pixels), [moved])
    assert again.embedding.cached
    assert again.embedding.id == expected.embedding.id
    ((mask,),), ((own,),) = found.results, expected.results
    assert mask.size == (SIZE.height, SIZE.width)
    assert (mask.area, mask.predicted_iou) == (own.area, own.predicted_iou)
    assert (mask.decode()[top:bottom, left:right] == own.decode()).all()
    assert mask.decode().sum() == own.area
    assert mask.bbox == (own.bbox[0] + left, own.bbox[1] + top, *own.bbox[2:])
    assert intervals.from_rle(CocoRle(SIZE, mask.counts)).size
    assert rle.encode(mask.decode()).counts == mask.counts


async def test_predict_refuses_prompts_of_a_whole_image(client: Client, tmp_path: Path) -> None:
    path = write_image(tmp_path / "in" / "a.png")
    source, image = Source(str(path)), ImageFile(str(path), path.name)
    masked = Prompt(mask=np.ones((SIZE.height, SIZE.width), dtype=np.bool_))
    with pytest.raises(InvalidRequest, match="has a mask"):
        await predict(client, source, image, TILING, [masked])
    with pytest.raises(InvalidRequest, match="tile: of 20000 pixels exceeds"):
        await predict(client, source, image, Tiling(20_000, 2_000), [Prompt(points=[(1, 1)])])
