"""The options of tiles on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import FAKE, Command


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--overlap", 10), "--overlap requires --tile"),
        (("--geojson",), "--geojson and --no-geojson require --tile"),
        (("--tile", 10), "--tile: is 10 pixels, the minimum is 64"),
        (
            ("--tile", 128, "--overlap", 128),
            "--overlap: is 128 pixels; for tiles of 128 it must be from 8, which seams need, to 64",
        ),
    ],
)
def test_tiles_that_cannot_be_used_are_usage_errors(
    samserve: Command, image: Path, tmp_path: Path, options: tuple[object, ...], message: str
) -> None:
    result = samserve("annotate", image, "--out", tmp_path / "out", *options)

    assert (result.code, result.error) == (2, message)


def test_tiles_over_a_limit_and_options_of_the_whole_image_are_usage_errors(
    samserve: Command, image: Path, tmp_path: Path
) -> None:
    command = ("annotate", image, "--out", tmp_path / "out", *FAKE)
    small = ("--set", "limits.max_image_side=100")

    over = samserve(*command, *small, "--tile", 128)
    region = samserve(*command, "--tile", 128, "--roi", "0,0,9,9")

    limit = (
        "--tile: of 128 pixels exceeds the server's limits.max_image_side: 128, the limit is 100"
    )
    assert (over.code, over.err.splitlines()[-1]) == (2, f"samserve: error: {limit}")
    text = "samserve: error: --roi: is of a whole image, and cannot be used with tiles"
    assert (region.code, region.err.splitlines()[-1]) == (2, text)


def test_predict_answers_from_a_tile_in_pixels_of_the_image(
    samserve: Command, tmp_path: Path
) -> None:
    path, record = tmp_path / "a.png", tmp_path / "a.json"
    pixels = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    command = ("predict", path, *FAKE, "--tile", 128, "--overlap", 32)

    found = samserve(*command, "--box", "200,100,290,190", "--json", record)
    large = samserve(*command, "--box", "10,10,150,150")
    drawn = samserve(*command, "--point", "10,10", "--out", tmp_path / "b.png")

    assert found.code == 0
    content = json.loads(record.read_text())
    assert content["image_size"] == [200, 300]
    (result,) = content["results"]
    assert result["masks"][0]["segmentation"]["size"] == [200, 300]
    assert found.out.startswith("prompt=1 token=")
    needed = "prompt: needs 140 pixels, and no tile contains all of it"
    assert large.code == 2
    assert needed in large.err
    assert (drawn.code, drawn.error) == (2, "--out is of a whole image: use --json with --tile")
