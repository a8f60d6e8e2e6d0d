"""Files that are broken, or made to break a reader: one line with the file and the place."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samserve.core import run_lengths
from samserve.datasets import image_files, json_files, reading
from samserve.datasets.checking import Check
from samserve.datasets.coco import read_results
from samserve.datasets.files import walk
from samserve.datasets.formats import WriteOptions
from samserve.datasets.types import Annotation, Category, DataSet, ImageRecord
from samserve.errors import InvalidRequest
from samserve.types import Size

from tests.datasets.sets import photo

IMAGE = {"id": 1, "file_name": "a.jpg", "width": 4, "height": 3}
WRITE = WriteOptions()
DEEP = "[" * 200_000
LONG = 10 << 20


def coco_with(annotation: Any, **others: Any) -> str:
    value = {"images": [IMAGE], "annotations": [annotation], "categories": [], **others}
    return json.dumps(value)


def mask_with(**segmentation: Any) -> str:
    return coco_with({"id": 7, "image_id": 1, "segmentation": {"size": [3, 4], **segmentation}})


def ring(*values: Any) -> str:
    return coco_with({"image_id": 1, "segmentation": [list(values)]})


HERE = "annotations[0] (id 7): segmentation"
COCO = {
    "": "Expecting '['",
    "{": "is not valid JSON: Expecting value: line 1 column 2",
    '{"images": [': "Expecting value",
    '{"images": [] "annotations"': "Expecting ','",
    '{"images": []}x': "Expecting the end of the file",
    '{"images": 3}': "images: must be a list",
    '{"images": [], 5: 3}': "Expecting a key",
    '{"annotations": []}': "has no key images",
    '{"images": [{"id": 1}]}': "images[0]: file_name: field required",
    '{"images": [7]}': "images[0]: input should be a valid dictionary",
    '{"images": [{"id": "1", "file_name": "a", "width": 2, "height": 2}]}': "images[0]: id: input",
    '{"images": [{"id": 1, "file_name": "a", "width": 0, "height": 2}]}': "images[0]: width: input",
    '{"images": [{"id": 1, "file_name": "a", "width": 1e99, "height": 2}]}': "images[0]: width",
    f'{{"images": [{DEEP}': "is nested too deeply",
    f'{{"images": [{"9" * 5000}': "Exceeds the limit",
    '{"images": [], "categories": [{"id": 1}]}': "categories[0]: name: field required",
    '{"images": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}': "used twice",
    json.dumps({"images": [IMAGE, IMAGE]}): "images[1]: the id 1 is used twice",
    coco_with({}): "annotations[0]: image_id: field required",
    coco_with({"image_id": 2}): "annotations[0]: names the image 2, which is not among the images",
    coco_with({"image_id": 1, "bbox": [1, 2, 3]}): "annotations[0]: bbox[3]: field required",
    coco_with({"image_id": 1, "bbox": [1, 2, 3, float("nan")]}): "NaN is not a number of JSON",
    coco_with({"image_id": 1, "bbox": [1, 2, 3, 1e9]}): "annotations[0]: bbox[3]: input should be",
    coco_with({"image_id": 1, "iscrowd": 2}): "annotations[0]: iscrowd: must be 0 or 1",
    coco_with({"image_id": 1, "score": "high"}): "annotations[0]: score: input should be a valid",
    coco_with(
        {"image_id": 1, "segmentation": 5}
    ): "annotations[0]: segmentation: must be run lengths",
    ring(1, 2, 3, 4): "segmentation[0]: must be a list of x and y of at least 3 corners",
    ring(1, 2, 3, 4, 5, 6, 7): "segmentation[0]: must be a list of x and y",
    ring(1, 2, 3, 4, 5, "6"): "segmentation[0]: has a coordinate that is not a number",
    ring(1, 2, 3, 4, 5, 1e300): "segmentation[0]: has a coordinate that is not a number up to",
    mask_with(): f"{HERE}: counts: field required",
    mask_with(counts="zz"): f"{HERE}: counts has characters outside",
    mask_with(counts=""): f"{HERE}: counts is empty",
    mask_with(counts=5): f"{HERE}: counts must be a string, or a list",
    mask_with(counts="ö"): f"{HERE}: counts has characters that are not ASCII",
    mask_with(counts=[12, -1, 1]): f"{HERE}: counts must be a string, or a list of whole",
    mask_with(counts=[5, 5]): f"{HERE}: counts sums to 10 pixels, the size has 12",
    mask_with(counts=[2**31 - 1] * 3): f"{HERE}: counts sums to",
    mask_with(size=[4, 3], counts=[12]): f"{HERE}: is of 3x4 pixels, the image has 4x3",
    mask_with(size=[2**31 - 1] * 2, counts="0"): f"{HERE}: is of",
    mask_with(size=[3], counts="0"): f"{HERE}: size[1]: field required",
    '{"images": [{"id": 1, "file_name": "a", "width": 2147483647, "height": 2147483647}], '
    '"annotations": [{"image_id": 1, "segmentation": {"size": [2147483647, 2147483647], '
    '"counts": "0"}}]}': "is not between 1 and 2**31-1 pixels",
}


def read_all(path: Path, **options: Any) -> None:
    for record in reading.open_dataset(path, **options).images:
        assert record


def message(read: Callable[[], None]) -> str:
    with pytest.raises(InvalidRequest) as caught:
        read()
    return caught.value.message


def test_coco_files_that_are_not_valid_are_named_with_the_place(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    wrong = []
    for text, expected in COCO.items():
        path.write_text(text)
        found = message(lambda: read_all(path, format="coco"))
        if expected not in found or not found.startswith(str(path)) or "\n" in found:
            wrong.append((text[:100], expected, found))
        assert len(found) < 1000
    assert wrong == []


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('{"info": {"image": 1}, "images": []}', "coco"),
        ('\ufeff { "annotations" : [{"image": "a"}], "images": []}', "coco"),
        ('{"images": [{"id": 1}, {"image": ', "coco"),
        ('{"image": {"images": [], "categories": 3}, "annotations": []}', "sa1b"),
        ('{"annotations": [], "image": {', "sa1b"),
    ],
)
def test_formats_are_found_by_the_keys_of_the_file_itself(
    text: str, name: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)

    assert reading.identify(path).name == name


def test_an_image_id_beyond_64_bits_is_one_finding(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    images = [{**IMAGE, "id": 10**400}, IMAGE]
    path.write_text(
        json.dumps({"images": images, "annotations": [{"image_id": 1, "bbox": [0] * 4}]})
    )

    found = [each.place for each in Check(reading.open_dataset(path)).findings()]

    assert found[0] == f"{path}: images[0]: id"
    assert found[1:] == ["a.jpg"]


def test_results_that_are_not_valid_are_named_with_the_place(tmp_path: Path) -> None:
    images, path = tmp_path / "images.json", tmp_path / "results.json"
    images.write_text(json.dumps({"images": [IMAGE]}))
    cases = {
        "{}": "",
        '{"a": 1}': "must be a list of results",
        "[5]": "[0]: input should be a valid dictionary",
        '[{"image_id": 3}]': "[0]: names the image 3, which is not among the images",
        '[{"image_id": 1, "bbox": "x"}]': "[0]: bbox: input should be a valid tuple",
    }
    for text, expected in cases.items():
        path.write_text(text)
        if expected:
            assert expected in message(lambda: list(read_results(path, images).images) and None)
    assert "--images must name the COCO file" in message(
        lambda: read_all(path, format="coco-results")
    )


RECORDS = {
    b"": "is not valid JSON",
    b"\xff\xfe": "is not UTF-8: byte 0",
    b"[]": "input should be a valid dictionary",
    b'{"image": {}}': "image.file_name: field required",
    b'{"image": {"width": 4, "height": 3, "file_name": "a"}}': "annotations: field required",
    b'{"image": {"width": 4, "height": 3, "file_name": 5}, "annotations": []}': "file_name: input",
    b'{"image": {"width": 4, "height": 3, "file_name": "a"}, "annotations": [{"id": 3, '
    b'"segmentation": {"size": [3, 4], "counts": "0"}}]}': "annotations[0] (id 3): segmentation:",
    DEEP.encode(): "is nested too deeply",
}


def test_records_that_are_not_valid_are_named_and_the_others_read(tmp_path: Path) -> None:
    good = {"image": {"width": 4, "height": 3, "file_name": "z"}, "annotations": []}
    for number, data in enumerate(RECORDS):
        (tmp_path / f"{number}.json").write_bytes(data)
    json_files.write(tmp_path / "z.json", good)
    records = iter(reading.open_dataset(tmp_path, "sa1b").images)

    for number, expected in enumerate(RECORDS.values()):
        with pytest.raises(InvalidRequest) as caught:
            next(records)
        assert f"{number}.json: " in caught.value.message
        assert expected in caught.value.message
    assert next(records).file_name == "z"
    assert next(records, None) is None


def test_all_annotations_that_are_not_valid_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    rows = [{"image_id": 1, "bbox": [0, 0, 1, 1], "score": score} for score in (1, "x", 2, "y")]
    path.write_text(json.dumps({"images": [IMAGE], "annotations": rows}))

    with pytest.raises(InvalidRequest) as caught:
        read_all(path)

    assert [each.field.rpartition(": ")[0] for each in caught.value.violations] == [
        f"{path}: annotations[1]",
        f"{path}: annotations[3]",
    ]


LABELS = {
    "0 0.1 0.2 0.3": "line 1: has 3 values after the class",
    "0 0.1 0.2 0.3 0.4 0.5": "line 1: has 5 values after the class",
    "\n0 0.5 0.5 1 1.5": "line 2: 1.5 is not between 0 and 1",
    "0 nan 0.5 1 1": "line 1: nan is not between 0 and 1",
    "0 0.5 0.5 1 1e999": "line 1: inf is not between 0 and 1",
    "-1 0.5 0.5 1 1": "line 1: '-1' is not a class",
    "nan 0.5 0.5 1 1": "line 1: 'nan' is not a class",
    "x 0.5 0.5 1 1": "line 1: 'x' is not a number",
    f"0 {'7' * LONG}": "line 1: ",
    "0 " + "0.5 " * 300_001: "line 1: has 300001 values after the class",
    b"\xff\xff": "is not UTF-8: byte 0",
}
DESCRIPTIONS = {
    "names: [a": "is not valid YAML",
    "5": "must have the keys names and train",
    "train: images": "names: must be a list of names",
    "{train: images, names: {x: a}}": "names: 'x' is not a class with a name",
    "{train: images, names: {0: [a]}}": "names: '0' is not a class with a name",
    "{train: [[images]], names: [a]}": "train: must be a folder of images",
    "{train: nowhere, names: [a]}": "nowhere: is missing",
    DEEP[:5000]: "is not valid YAML",
    "!!python/object/apply:os.system ['true']": "is not valid YAML",
}


def test_labels_and_descriptions_that_are_not_valid_are_named(tmp_path: Path) -> None:
    photo(tmp_path / "images" / "a.jpg", Size(3, 4))
    (tmp_path / "labels").mkdir()
    labels, description = tmp_path / "labels" / "a.txt", tmp_path / "data.yaml"
    wrong = []
    description.write_text("{train: images, names: [a]}")
    for text, expected in LABELS.items():
        labels.write_bytes(text if isinstance(text, bytes) else text.encode())
        found = message(lambda: read_all(tmp_path))
        wrong += [] if f"{labels}: {expected}" in found and len(found) < 500 else [found[:300]]
    labels.unlink()
    for text, expected in DESCRIPTIONS.items():
        description.write_text(text)
        found = message(lambda: read_all(tmp_path, format="yolo"))
        wrong += [] if expected in found and "\n" not in found else [found[:300]]
    (tmp_path / "images" / "a.jpg").write_bytes(b"no image")
    description.write_text("{train: images, names: [a]}")
    wrong += [] if "a.jpg: is not an image" in message(lambda: read_all(tmp_path)) else ["image"]

    assert wrong == []


@pytest.mark.parametrize(
    "name",
    [
        *("../a", "/etc/passwd", "a//b", "", ".", "a\0", "a\\..\\b", "\ud800.jpg"),
        "http://images.cocodataset.org/a.jpg",
    ],
)
def test_names_that_lead_out_of_the_folder_are_not_written(name: str, tmp_path: Path) -> None:
    source = tmp_path / "a.json"
    source.write_text(json.dumps({"images": [{**IMAGE, "file_name": name}], "annotations": []}))
    for format_name in ("sa1b", "yolo", "label-studio", "cvat"):
        target = reading.find_format(format_name)
        assert target.write is not None
        with pytest.raises(InvalidRequest, match="is not a relative path of an image"):
            target.write(reading.open_dataset(source), tmp_path / "out", WRITE)
        assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    (finding,) = Check(reading.open_dataset(source)).findings()
    assert finding.text == "the name is not a relative path of an image"


def test_names_that_are_too_long_for_a_file_are_those_of_missing_images(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="the image is missing"):
        image_files.find(tmp_path, "x" * 300)


def test_links_to_the_folder_that_they_are_in_are_left_out(tmp_path: Path) -> None:
    photo(tmp_path / "in" / "a.jpg", Size(3, 4))
    photo(tmp_path / "elsewhere" / "b.jpg", Size(3, 4))
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "other").symlink_to(tmp_path / "elsewhere")

    found = [str(path.relative_to(tmp_path / "in")) for path in walk(tmp_path / "in")]

    assert found == ["a.jpg", "other/b.jpg"]


def test_what_is_neither_a_file_nor_a_folder_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="is neither a file nor a folder"):
        reading.identify(Path("/dev/null"))


@pytest.mark.parametrize("format_name", ["label-studio", "cvat"])
@pytest.mark.parametrize("name", ["\ud800", "a\0", "\x01"])
def test_names_of_categories_that_xml_cannot_hold_are_named(
    name: str, format_name: str, tmp_path: Path
) -> None:
    data = DataSet([], (Category(1, name),))
    target = reading.find_format(format_name)
    assert target.write is not None

    with pytest.raises(InvalidRequest, match="categories: has a character that XML cannot hold"):
        target.write(data, tmp_path / "out", WRITE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format_name", ["sa1b", "coco", "yolo", "label-studio", "cvat"])
def test_masks_that_cannot_be_written_are_named_with_their_image(
    format_name: str, tmp_path: Path
) -> None:
    annotation = Annotation(run_lengths.encode(np.ones((2, 2), np.bool_)), id=1, category_id=1)
    record = ImageRecord("a.jpg", Size(3, 4), (annotation,), image_id=1)
    target = reading.find_format(format_name)
    assert target.write is not None

    with pytest.raises(InvalidRequest, match=r"^a\.jpg: segmentation: is of 2x2 pixels"):
        target.write(DataSet([record], (Category(1, "a"),)), tmp_path / "out", WRITE)


def test_a_coco_file_takes_memory_for_its_text_not_for_its_objects(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    row = json.dumps({"image_id": 1, "bbox": [0, 0, 1, 1], "keypoints": [1, 2, 3] * 30})
    rows = ",\n".join([row] * 10_000)
    path.write_text(
        f'{{"images": [{json.dumps({**IMAGE, "id": 2})}], "annotations": [{rows}, '
        f'{{"image_id": 2, "bbox": [0, 0, 1, 1]}}], "categories": []}}'
    )
    tracemalloc.start()
    try:
        first = next(iter(reading.open_dataset(path).images))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert len(first.annotations) == 1
    # The bytes and the text of the file, for a moment; parsed, it is nine times as large.
    assert peak < 3 * path.stat().st_size
