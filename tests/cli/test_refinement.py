"""Masks in every format, files of masks and logits, and the refinement of a mask by its logits."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely.geometry
from PIL import Image
from samserve.core import rle
from samserve.types import CocoRle, Size

from tests.cli.conftest import FAKE, Command, Served, server_process

POINT = ("--point", "30,20")


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with server_process() as server:
        yield server


def only_mask(text: str) -> dict[str, Any]:
    (result,) = json.loads(text)["results"]
    (mask,) = result["masks"]
    return mask


def pixels_of(segmentation: dict[str, Any]) -> np.ndarray:
    """Decode run lengths, bits or a PNG file."""
    size = Size(*segmentation["size"])
    if "png" in segmentation:
        with Image.open(io.BytesIO(base64.b64decode(segmentation["png"]))) as image:
            return np.asarray(image)
    if "bits" in segmentation:
        data = np.frombuffer(base64.b64decode(segmentation["bits"]), np.uint8)
        return np.unpackbits(data, count=size.pixels).astype(bool).reshape(segmentation["size"])
    counts = segmentation["counts"]
    if isinstance(counts, str):
        return rle.decode(CocoRle(size, counts))
    values = np.repeat(np.arange(len(counts)) % 2, counts).astype(bool)
    return values.reshape(size.width, size.height).T


@pytest.mark.parametrize("form", ["uncompressed_rle", "binary_mask", "png"])
@pytest.mark.parametrize("command", ["predict", "automask"])
def test_every_exact_format_has_the_same_pixels(
    samserve: Command, image: Path, form: str, command: str
) -> None:
    arguments = (command, image, "--json", "-", *FAKE)
    arguments += POINT if command == "predict" else ("--points-per-side", "4")

    def masks(*options: str) -> list[dict[str, Any]]:
        record = json.loads(samserve(*arguments, *options).out)
        if command == "automask":
            return record["annotations"]
        return record["results"][0]["masks"]

    expected, found = masks(), masks("--format", form)

    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(pixels_of(one["segmentation"]), pixels_of(other["segmentation"]))
        assert one["area"] == pixels_of(one["segmentation"]).sum()


@pytest.mark.parametrize("command", [("predict", *POINT), ("automask", "--points-per-side", "4")])
def test_polygons_are_geojson_with_their_iou(
    samserve: Command, image: Path, command: tuple[str, ...]
) -> None:
    polygons = ("--format", "polygons", "--tolerance", "0")

    result = samserve(*command, image, *polygons, "--json", "-", *FAKE)
    lines = samserve(*command, image, *polygons, *FAKE).out

    record = json.loads(result.out)
    masks = record["annotations"] if "annotations" in record else record["results"][0]["masks"]
    for mask in masks:
        assert mask["segmentation"]["type"] == "MultiPolygon"
        assert mask["segmentation"]["iou"] == 1
        polygon = shapely.geometry.shape(mask["segmentation"])
        assert polygon.area == pytest.approx(mask["area"], rel=0.01)
    assert "polygon_iou=1.0000" in lines


def test_polygon_options_are_applied(samserve: Command, image: Path) -> None:
    polygons = ("predict", image, *POINT, "--format", "polygons", "--json", "-", *FAKE)

    exact = only_mask(samserve(*polygons, "--tolerance", "0").out)["segmentation"]
    coarse = only_mask(samserve(*polygons, "--tolerance", "5").out)["segmentation"]
    nothing = only_mask(samserve(*polygons, "--min-area", "99999").out)["segmentation"]

    assert len(coarse["coordinates"][0][0]) < len(exact["coordinates"][0][0])
    assert coarse["iou"] < 1
    assert nothing["coordinates"] == []


def test_a_box_has_no_pixels(samserve: Command, image: Path) -> None:
    plain = only_mask(samserve("predict", image, *POINT, "--json", "-", *FAKE).out)
    box = only_mask(samserve("predict", image, *POINT, "--format", "box", "--json", "-", *FAKE).out)

    assert box == plain | {"segmentation": None}


def test_cleanup_options_are_applied(samserve: Command, image: Path) -> None:
    # The engine ignores the box if there is a point.
    predict = ("predict", image, *POINT, "--box", "30,20,34,24", "--json", "-", *FAKE)

    plain = pixels_of(only_mask(samserve(*predict).out)["segmentation"])
    clipped = pixels_of(only_mask(samserve(*predict, "--clip-to-box").out)["segmentation"])

    inside = np.zeros_like(plain)
    inside[20:24, 30:34] = True
    assert (plain & ~inside).any()
    assert np.array_equal(clipped, plain & inside)


def test_mask_files_have_the_pixels_of_the_mask(
    samserve: Command, image: Path, tmp_path: Path
) -> None:
    png, npy, logits = tmp_path / "m.png", tmp_path / "m.npy", tmp_path / "l.npy"
    outputs = ("--mask-out", png, "--logits-out", logits, "--json", "-")

    result = samserve("predict", image, *POINT, *outputs, *FAKE)
    other = samserve("predict", image, *POINT, "--mask-out", npy, *FAKE)

    expected = pixels_of(only_mask(result.out)["segmentation"])
    with Image.open(png) as opened:
        assert opened.mode == "1"
        assert np.array_equal(np.asarray(opened), expected)
    assert np.array_equal(np.load(npy), expected)
    assert np.load(npy).dtype == np.bool_
    assert (np.load(logits).dtype, np.load(logits).ndim) == (np.float32, 2)
    assert result.err.startswith(f"wrote {png}\nwrote {logits}\n")
    assert other.code == 0


def test_several_masks_are_files_with_prompt_and_token(
    samserve: Command, image: Path, tmp_path: Path
) -> None:
    boxes = ("--box", "1,1,30,30", "--box", "20,20,60,40")

    samserve(
        "predict", image, *POINT, "--multimask", "all", "--mask-out", tmp_path / "a.png", *FAKE
    )
    samserve("predict", image, *boxes, "--logits-out", tmp_path / "b.npy", *FAKE)

    names = sorted(path.name for path in tmp_path.glob("?-*"))
    assert names[:3] == ["a-1-1.png", "a-1-2.png", "a-1-3.png"]
    assert [name.rpartition("-")[0] for name in names[3:]] == ["b-1", "b-2"]


def test_a_mask_is_refined_by_its_logits_and_the_id_of_its_embedding(
    samserve: Command, served: Served, image: Path, tmp_path: Path
) -> None:
    server = ("--server", served.address)
    logits, out = tmp_path / "logits.npy", tmp_path / "mask.png"
    single = ("--multimask", "single", *server)

    embedding = json.loads(samserve("embed", image, "--json", "-", *server).out)["id"]
    first = samserve(
        *("predict", "--embedding", embedding, *POINT, "--logits-out", logits, *single)
    )
    second = samserve(
        *("predict", "--embedding", embedding, "--mask", logits),
        *("--mask-out", out, "--json", "-", *single),
    )

    assert (first.code, second.code) == (0, 0), first.err + second.err
    record = json.loads(second.out)
    assert (record["file"], record["embedding_id"]) == (None, embedding)
    with Image.open(out) as opened:
        refined = np.asarray(opened)
    # The engine enlarges the mask of the prompt.
    assert refined[20, 30]
    assert refined.sum() > area_of(first.out)


def area_of(line: str) -> int:
    """Return the area in the line of a mask."""
    return int(line.partition("area=")[2].partition(" ")[0])


def test_an_image_with_an_embedding_is_sent_only_if_that_is_missing(
    samserve: Command, served: Served, image: Path, tmp_path: Path
) -> None:
    server = ("--server", served.address)
    tiff = tmp_path / "image.tif"
    with Image.open(image) as opened:
        opened.save(tiff)

    alone = samserve("predict", "--embedding", "f" * 64, *POINT, *server)
    both = samserve(
        *("predict", tiff, "--embedding", "f" * 64, *POINT, "--out", tmp_path / "o.png", *server)
    )

    assert alone.code == 1
    assert "EMBEDDING_NOT_FOUND" in alone.error
    assert both.code == 0, both.err
    assert (tmp_path / "o.png").is_file()
