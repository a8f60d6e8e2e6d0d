"""`samserve dataset`: conversion, check and contact sheet, as commands."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image
from samserve.cli import progress
from samserve.cli.dataset import sheet as sheets
from samserve.core import rle
from samserve.datasets import coco, image_files, reading, sa1b
from samserve.datasets.formats import WriteOptions
from samserve.datasets.types import Annotation, Category, DataSet, ImageRecord
from samserve.types import Size

from tests.cli.conftest import Command
from tests.datasets.sets import disc, photo

SIZE = Size(60, 80)
CATEGORIES = (Category(4, "ring"), Category(9, "box"))
RING = rle.encode(disc(SIZE, (30, 30), 20))
RECORDS = [
    ImageRecord(
        f"sub folder/{number}.jpg",
        SIZE,
        (
            Annotation(RING, id=number * 10, category_id=4, predicted_iou=0.5),
            Annotation(None, id=number * 10 + 1, category_id=9, box=(50, 10, 20, 30)),
        ),
        image_id=number,
    )
    for number in range(3)
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The output of an annotation, whose images are in ``images``."""
    for record in RECORDS:
        photo(tmp_path / "images" / record.file_name, SIZE)
        sa1b.write_file(sa1b.record_path(tmp_path / "out" / "records", record.file_name), record)
    sa1b.write_description(tmp_path / "out", CATEGORIES, source=str(tmp_path / "images"))
    return tmp_path / "out"


def test_convert_says_what_the_format_does_not_hold(
    samserve: Command, source: Path, tmp_path: Path
) -> None:
    converted = samserve("dataset", "convert", source, "--to", "yolo", "--out", tmp_path / "yolo")

    assert (converted.code, converted.out) == (0, "images: 3\nannotations: 6\n")
    assert converted.err.splitlines() == [
        "sa1b to yolo: 6 annotations have an id, not written",
        "sa1b to yolo: 3 annotations have holes, joined by bridges",
        "sa1b to yolo: 3 annotations have scores, not written",
        "sa1b to yolo: 3 annotations have only a box, written as a rectangle",
        f"wrote {tmp_path / 'yolo'}",
    ]
    image = tmp_path / "yolo" / "images" / "sub folder" / "0.jpg"
    assert image.samefile(tmp_path / "images" / "sub folder" / "0.jpg")
    assert samserve("dataset", "check", tmp_path / "yolo").out.endswith("nothing found\n")


def test_convert_keeps_run_lengths_or_makes_polygons(
    samserve: Command, source: Path, tmp_path: Path
) -> None:
    convert = ("dataset", "convert", source, "--to", "coco", "--out")
    exact, outlines = tmp_path / "exact.json", tmp_path / "outlines.json"

    assert samserve(*convert, exact).err == f"wrote {exact}\n"
    coarse = samserve(*convert, outlines, "--segmentation", "polygons", "--tolerance", "1.5")

    assert list(reading.open_dataset(exact).images) == RECORDS
    assert coarse.err.splitlines() == [
        "sa1b to coco: 3 annotations became polygons, up to 1.5 pixels from the outline",
        f"wrote {outlines}",
    ]
    assert len(json.loads(outlines.read_text())["annotations"][0]["segmentation"][0]) < 80


def test_convert_numbers_ids_that_are_not_unique(samserve: Command, tmp_path: Path) -> None:
    for name in ("a", "b"):
        record = replace(RECORDS[1], file_name=f"{name}.jpg")
        sa1b.write_file(tmp_path / "in" / f"{name}.json", record)

    out = tmp_path / "a.json"
    result = samserve("dataset", "convert", tmp_path / "in", "--to", "coco", "--out", out)

    assert "ids are numbered from 1: b.jpg: the image id 1 is used twice" in result.err
    found = json.loads(out.read_text())
    assert [each["id"] for each in found["annotations"]] == [1, 2, 3, 4]
    assert [each["image_id"] for each in found["annotations"]] == [1, 1, 2, 2]


def test_long_conversions_and_checks_write_their_progress(
    samserve: Command, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_LONG_S", 0.0)
    monkeypatch.setattr(progress, "_LINE_INTERVAL_S", 0.0)
    out = tmp_path / "a.json"

    converted = samserve("dataset", "convert", source, "--to", "coco", "--out", out).err
    checked = samserve("dataset", "check", out, "--images", tmp_path / "images").err

    # Of a folder, the number of images is not known before.
    for number in (1, 2, 3):
        assert re.search(
            rf"^converting: {number} images, [\d.]+ images/s$", converted, re.MULTILINE
        )
        assert re.search(rf"^checking: {number} of 3 images, ", checked, re.MULTILINE)


def test_one_annotation_agrees_with_its_verb(
    samserve: Command, tmp_path: Path, source: Path
) -> None:
    for number in (0, 1):
        (source / "records" / "sub folder" / f"{number}.jpg.json").unlink()

    converted = samserve("dataset", "convert", source, "--to", "yolo", "--out", tmp_path / "yolo")

    assert "sa1b to yolo: 1 annotation has scores, not written\n" in converted.err
    assert "sa1b to yolo: 2 annotations have an id, not written\n" in converted.err


@pytest.mark.parametrize("target", ["sa1b", "coco", "yolo"])
def test_convert_overwrites_nothing_and_leaves_nothing_when_it_fails(
    samserve: Command, source: Path, tmp_path: Path, target: str
) -> None:
    convert = ("dataset", "convert", source, "--to", target, "--out")
    (tmp_path / "there").mkdir()
    refused = samserve(*convert, tmp_path / "there")
    assert (refused.code, refused.error) == (
        2,
        f"--out {tmp_path / 'there'}: exists already: name another one",
    )

    (source / "records" / "sub folder" / "1.jpg.json").write_text('{"image": {}')
    failed = samserve(*convert, tmp_path / "new")
    assert failed.code == 1
    assert "1.jpg.json: is not valid JSON" in failed.error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "out", "there"]


def test_usage_errors_name_the_option(samserve: Command, source: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("no data set")
    missing = samserve("dataset", "check", tmp_path / "nowhere")
    unknown = samserve("dataset", "check", tmp_path / "text.txt")
    named = samserve("dataset", "show", source, "--from", "voc", "--out", tmp_path / "a.png")
    folder = samserve(
        "dataset", "convert", source, "--to", "coco", "--out", tmp_path / "no" / "a.json"
    )

    assert [each.code for each in (missing, unknown, named, folder)] == [2, 2, 2, 2]
    assert missing.error == f"DATASET: {tmp_path / 'nowhere'}: does not exist"
    assert "is not a data set that is known" in unknown.error
    assert named.error.startswith("--from: format: 'voc' is not one of ")
    assert folder.error.endswith(f"{tmp_path / 'no'} is not a directory")


def test_check_prints_findings_and_their_numbers(
    samserve: Command, source: Path, tmp_path: Path
) -> None:
    fine = samserve("dataset", "check", source)
    assert (fine.code, fine.out) == (0, "images: 3\nannotations: 6\nnothing found\n")

    record = replace(RECORDS[2], annotations=(*RECORDS[2].annotations, RECORDS[2].annotations[0]))
    sa1b.write_file(sa1b.record_path(source / "records", record.file_name), record)
    (tmp_path / "images" / "sub folder" / "0.jpg").unlink()
    report = tmp_path / "report.jsonl"
    found = samserve("dataset", "check", source, "--json", report)

    assert found.code == 3
    assert found.out.splitlines() == [
        f"sub folder/0.jpg: the image is missing in {tmp_path / 'images'}",
        "sub folder/2.jpg: annotation 20: the annotation id 20 is used twice",
        "sub folder/2.jpg: annotation 20: its mask has the pixels of annotation 20",
        "images: 3",
        "annotations: 7",
        "image missing: 1",
        "id used twice: 1",
        "duplicate: 1",
    ]
    rows = [json.loads(line) for line in report.read_text().splitlines()]
    assert rows[1]["problem"] == "id_twice"
    assert (rows[0]["place"], rows[0]["annotation"]) == ("sub folder/0.jpg", None)


def test_findings_replace_no_file_of_the_data_set(samserve: Command, source: Path) -> None:
    record = source / "records" / "sub folder" / "0.jpg.json"
    for path, target in ((record, record), (source, record), (source, source / "dataset.json")):
        before = target.read_bytes()
        refused = samserve("dataset", "check", path, "--json", target)

        text = f"--json {target}: is a file of the data set: name another one"
        assert (refused.code, refused.error) == (2, text)
        assert target.read_bytes() == before

    for _ in range(2):
        assert samserve("dataset", "check", source, "--json", source / "a.jsonl").code == 0


def test_check_lists_a_limited_number_of_findings(samserve: Command, tmp_path: Path) -> None:
    records = [replace(RECORDS[0], file_name=f"{n}.jpg", image_id=n) for n in range(150)]
    for record in records:
        sa1b.write_file(sa1b.record_path(tmp_path / "in", record.file_name), record)

    found = samserve("dataset", "check", tmp_path / "in")
    lines = samserve("dataset", "check", tmp_path / "in", "--json", "-")

    # Ids of 149 twice, and 300 categories that are not defined.
    assert "and 498 more: --json FILE has all of them" in found.out
    assert len(found.out.splitlines()) == 100 + 1 + 2 + 2
    assert len(lines.out.splitlines()) == 598
    assert (found.code, lines.code) == (3, 3)


def test_check_reports_a_file_that_cannot_be_read(samserve: Command, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"images": [}')

    found = samserve("dataset", "check", path)

    assert found.code == 3
    assert found.out.splitlines()[0].startswith(f"{path}: is not valid JSON: Expecting value")
    assert found.err == ""


def test_show_draws_masks_and_boxes_on_the_images(
    samserve: Command, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sheet.png"

    shown = samserve("dataset", "show", source, "--out", out, "--columns", 2)

    assert (shown.code, shown.err) == (0, f"wrote {out}\n")
    sheet = np.asarray(Image.open(out).convert("RGB"), dtype=int)
    # Two columns of 400 pixels with gaps of 20, and two rows.
    assert sheet.shape[1] == 860
    left = sheet[:, 20:420]
    top = int(np.flatnonzero((abs(left - (90, 120, 60)) < 6).all(axis=2).any(axis=1))[0])
    # The image is drawn five times as large; the ring has a hole in its middle.
    assert near(sheet[top + 150, 20 + 150], (90, 120, 60))
    assert sheet[top + 150, 20 + 150 + 65][2] > 120
    assert near(sheet[top + 280, 20 + 380], (90, 120, 60))


def near(pixel: np.ndarray[tuple[int, ...], np.dtype[np.int64]], tone: tuple[int, ...]) -> bool:
    return bool((abs(pixel - tone) < 8).all())


def test_show_draws_without_the_images_and_leaves_out_what_is_not_valid(
    samserve: Command, tmp_path: Path
) -> None:
    path = tmp_path / "a.json"
    coco.write(DataSet(RECORDS, CATEGORIES), path, WriteOptions())
    value = json.loads(path.read_text())
    value["annotations"][0]["bbox"] = "x"
    path.write_text(json.dumps(value))

    shown = samserve("dataset", "show", path, "--out", tmp_path / "a.png", "--limit", 1)

    first, second, third = shown.err.splitlines()
    assert shown.code == 0
    assert first.startswith(f"left out: {path}: annotations[0] (id 0): bbox: ")
    assert second == (
        "1 image is drawn without a readable file of its size: --images DIR names their folder"
    )
    assert third.startswith("wrote ")


def test_captions_have_only_characters_that_the_font_has() -> None:
    # A precomposed letter, and one with a combining accent.
    assert sheets._legible("M\u00fcnchen/Cafe\u0301 \u65e5 1\n.jpg") == "Munchen/Cafe ? 1?.jpg"


def test_image_files_beside_a_data_set_are_its_own_only_if_it_names_them(
    samserve: Command, source: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    exported = folder / "exported.json"
    assert samserve("dataset", "convert", source, "--to", "coco", "--out", exported).code == 0
    photo(folder / "sheet.png", SIZE)

    with_images = samserve("dataset", "check", exported)
    elsewhere = exported.rename(tmp_path / "exported.json")
    photo(tmp_path / "sheet.png", SIZE)
    without = samserve("dataset", "check", elsewhere)

    # The other image has no record, and is no finding.
    assert (with_images.code, with_images.err) == (0, "")
    assert (without.code, "image files were not compared" in without.err) == (0, True)
    assert "sheet.png: the image has no record" in (
        samserve("dataset", "check", elsewhere, "--images", folder).out
    )


def test_the_source_of_a_data_set_may_be_a_single_image(samserve: Command, tmp_path: Path) -> None:
    record = replace(RECORDS[0], file_name="0.jpg")
    photo(tmp_path / "0.jpg", SIZE)
    photo(tmp_path / "other.jpg", SIZE)
    sa1b.write_file(sa1b.record_path(tmp_path / "out" / "records", record.file_name), record)
    sa1b.write_description(tmp_path / "out", CATEGORIES, source=str(tmp_path / "0.jpg"))

    checked = samserve("dataset", "check", tmp_path / "out")

    assert (checked.code, checked.err) == (0, "")


def test_heic_images_are_compared(
    samserve: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Another test may have made Pillow read them.
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    image_files.register_heif.cache_clear()
    record = replace(RECORDS[0], file_name="0.heic")
    image = Image.new("RGB", (SIZE.width, SIZE.height))
    pillow_heif.from_pillow(image).save(tmp_path / "0.heic")
    coco.write(DataSet([record], CATEGORIES), tmp_path / "data.json", WriteOptions())

    checked = samserve("dataset", "check", tmp_path / "data.json", "--images", tmp_path)

    assert (checked.code, checked.err) == (0, "")
