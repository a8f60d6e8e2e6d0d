"""Files, directories and standard input as images, and formats that are converted."""

from __future__ import annotations

import io
import json
import os
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import sample_images
from tests.cli.conftest import FAKE, Command, Result

PIXELS = sample_images.noise(48, 64)
POINT = ("--point", "30,20")
COMMANDS = [("embed",), ("predict", *POINT), ("automask", "--points-per-side", "2")]


def saved(path: Path, pixels: np.ndarray = PIXELS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images, one in a subdirectory, a file that is no image, and two others."""
    folder = tmp_path / "images"
    saved(folder / "a.png")
    saved(folder / "b.tif", sample_images.noise(48, 64, 1))
    saved(folder / "deeper" / "c.BMP", sample_images.noise(48, 64, 2))
    (folder / "broken.gif").write_bytes(b"GIF89a")
    (folder / "notes.txt").write_text("no image")
    saved(folder / ".hidden.png")
    return folder


def set_stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def records(result: Result) -> dict[str, dict[str, Any]]:
    found = [json.loads(line) for line in result.out.splitlines()]
    return {Path(record["file"]).name: record for record in found}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_converted_file_is_named_in_one_line(
    samserve: Command, tmp_path: Path, command: tuple[str, ...]
) -> None:
    image = saved(tmp_path / "photo.tif")

    result = samserve(*command, image, *FAKE)
    same = samserve(*command, saved(tmp_path / "photo.png"), *FAKE)

    assert (result.code, same.code) == (0, 0)
    assert f"converted {image} from TIFF to PNG\n" in result.err
    assert "converted" not in same.err


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
@pytest.mark.parametrize("kind", ["PNG", "BMP"])
def test_standard_input_is_an_image(
    samserve: Command, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], kind: str
) -> None:
    set_stdin(monkeypatch, sample_images.encode(PIXELS, kind))

    result = samserve(*command, "-", *FAKE)

    assert result.code == 0, result.err
    assert ("converted - from BMP to PNG\n" in result.err) == (kind == "BMP")


def test_an_overlay_of_a_converted_image_shows_it(samserve: Command, tmp_path: Path) -> None:
    out = tmp_path / "out.png"

    result = samserve("predict", saved(tmp_path / "a.bmp"), *POINT, "--out", out, *FAKE)

    assert result.code == 0, result.err
    with Image.open(out) as overlay:
        assert overlay.width == 1280


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_what_is_no_image_is_one_line(
    samserve: Command, tmp_path: Path, command: tuple[str, ...]
) -> None:
    (tmp_path / "a.xyz").write_text("no image")

    result = samserve(*command, tmp_path / "a.xyz", *FAKE)

    assert result.code == 1
    assert result.error == (
        f"{tmp_path}/a.xyz: is not an image: expected JPEG, PNG, WebP, or another format that "
        "Pillow reads, such as TIFF or BMP"
    )


def test_embed_of_a_directory_prints_a_record_for_each_image(
    samserve: Command, folder: Path
) -> None:
    result = samserve("embed", folder, *FAKE)
    recursive = samserve("embed", folder, "--recursive", *FAKE)

    found = records(result)
    assert (result.code, recursive.code) == (1, 1)
    assert set(found) == {"a.png", "b.tif", "broken.gif"}
    assert set(records(recursive)) == {*found, "c.BMP"}
    assert found["a.png"]["image_size"] == [48, 64]
    assert len(found["a.png"]["id"]) == 64
    assert (found["a.png"]["converted_from"], found["b.tif"]["converted_from"]) == ("", "TIFF")
    assert (found["a.png"]["error"], found["broken.gif"]["id"]) == (None, None)
    assert (
        "is a GIF file" in found["broken.gif"]["error"]
        or "corrupt" in (found["broken.gif"]["error"])
    )
    for line in ("files: 3", "converted to PNG: 1", "failed: 1", "skipped: 2"):
        assert f"{line}\n" in result.err
    assert f"samserve: error: {folder / 'broken.gif'}: is " in result.err


def test_predict_of_several_files_prints_a_record_for_each(
    samserve: Command, folder: Path, tmp_path: Path
) -> None:
    other = saved(tmp_path / "wide.png", sample_images.noise(48, 640))

    result = samserve("predict", folder / "a.png", other, "--point", "300,20", *FAKE)

    found = records(result)
    assert result.code == 1
    assert "must be from 0 to 64" in found["a.png"]["error"]
    assert found["wide.png"]["error"] is None
    assert found["wide.png"]["image_size"] == [48, 640]
    assert len(found["wide.png"]["results"][0]["masks"]) == 1
    assert "masks: 1\n" in result.err


def test_records_in_a_file_leave_the_counts_on_standard_output(
    samserve: Command, folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "out.json"

    result = samserve("predict", folder / "a.png", folder / "b.tif", *POINT, "--json", file, *FAKE)

    assert result.code == 0, result.err
    assert result.out.splitlines() == ["files: 2", "masks: 2", "converted to PNG: 1", "failed: 0"]
    assert len(file.read_text().splitlines()) == 2


def test_a_single_image_has_the_same_record_in_one_line(
    samserve: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = folder / "b.tif"
    one = samserve("embed", image, "--json", "-", *FAKE)
    many = samserve("embed", image, folder / "a.png", *FAKE)
    predicted = samserve("predict", image, *POINT, "--json", "-", *FAKE)
    several = samserve("predict", image, folder / "a.png", *POINT, *FAKE)

    assert records(one)["b.tif"].keys() == records(many)["b.tif"].keys()
    assert records(one)["b.tif"]["id"] == records(many)["b.tif"]["id"]
    assert records(predicted)["b.tif"].keys() == records(several)["b.tif"].keys()
    assert records(predicted)["b.tif"]["results"] == records(several)["b.tif"]["results"]


def test_files_for_several_images_are_written_to_directories(
    samserve: Command, folder: Path, tmp_path: Path
) -> None:
    (folder / "broken.gif").unlink()
    outputs = {option: tmp_path / option for option in ("out", "mask-out", "logits-out")}
    outputs["out"].mkdir()
    named = [part for option, path in outputs.items() for part in (f"--{option}", path)]

    result = samserve("predict", folder, "--recursive", *POINT, *named, *FAKE)

    assert result.code == 0, result.err
    written = {
        option: sorted(str(each.relative_to(path)) for each in path.rglob("*.*"))
        for option, path in outputs.items()
    }
    assert written["out"] == written["mask-out"] == ["a.png", "b.png", "deeper/c.png"]
    assert written["logits-out"] == ["a.npy", "b.npy", "deeper/c.npy"]
    assert "files written: 9\n" in result.err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("predict", "A", "A"), "the same file is named twice"),
        (("embed", "-", "-"), "the same file is named twice"),
        (("embed", "EMPTY"), "contains no JPEG, PNG, WebP, TIFF"),
        (("predict", "A", "OTHER", "--out", "x.png"), "--out x.png: several images need a dir"),
        (("predict", "A", "OTHER", "--mask-out", "A"), "a.png: several images need a directory"),
        (("predict", "A", "OTHER", "--logits-out", "no/b"), "no is not a directory"),
        (("predict", "A", "B", "--out", "EMPTY"), "have the same name: run two commands"),
    ],
    ids=ascii,
)
def test_wrong_inputs_and_outputs_are_usage_errors(
    samserve: Command, folder: Path, tmp_path: Path, arguments: tuple[str, ...], text: str
) -> None:
    names = {
        "A": folder / "a.png",
        "B": saved(folder / "deeper" / "a.bmp"),
        "OTHER": folder / "b.tif",
        "EMPTY": tmp_path / "empty",
    }
    names["EMPTY"].mkdir()
    prompts = POINT if arguments[0] == "predict" else ()

    result = samserve(*(names.get(part, part) for part in arguments), *prompts, *FAKE)

    assert (result.code, result.out) == (2, "")
    assert text in result.error


def test_an_unreadable_file_of_a_directory_is_reported(
    samserve: Command, folder: Path, tmp_path: Path
) -> None:
    (folder / "dangling.png").symlink_to(tmp_path / "missing")

    result = samserve("embed", folder, *FAKE)

    assert result.code == 1
    assert records(result)["dangling.png"]["error"] == os.strerror(2)


def test_warnings_of_pillow_are_not_printed(samserve: Command, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(PIXELS).save(path, dpi=(300, 300))
    one, two = (struct.pack("<HHI", 296, 3, count) for count in (1, 2))
    assert one in path.read_bytes()
    # A resolution unit with two values.
    path.write_bytes(path.read_bytes().replace(one, two))
    with pytest.warns(UserWarning, match="too many entries"), Image.open(path) as opened:
        opened.load()

    result = samserve("embed", path, *FAKE)

    assert result.code == 0, result.err
    assert result.err == f"converted {path} from TIFF to PNG\n"
