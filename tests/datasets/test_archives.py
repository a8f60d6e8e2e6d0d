"""Zip archives of data sets, as CVAT exports them: COCO 1.0 and Ultralytics YOLO Segmentation 1.0.

The files are made by hand after https://docs.cvat.ai/docs/dataset_management/formats.
"""

from __future__ import annotations

import gc
import json
import shutil
import tempfile
import zipfile
from pathlib import Path

import pytest
from samserve.datasets import archives
from samserve.datasets.reading import identify, open_dataset
from samserve.datasets.types import ImageRecord, Polygons
from samserve.errors import InvalidRequest
from samserve.types import Size

from tests import sample_images

RING = [4, 4, 40, 4, 40, 30]
COCO = {
    "licenses": [{"name": "", "id": 0, "url": ""}],
    "info": {"contributor": "", "date_created": "", "description": "", "url": "", "version": ""},
    "categories": [{"id": 1, "name": "car", "supercategory": ""}],
    "images": [
        {
            "id": 1,
            "width": 64,
            "height": 48,
            "file_name": "street/1.png",
            "license": 0,
            "flickr_url": "",
            "coco_url": "",
            "date_captured": 0,
        }
    ],
    "annotations": [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 1,
            "segmentation": [RING],
            "area": 468.0,
            "bbox": [4.0, 4.0, 36.0, 26.0],
            "iscrowd": 0,
            "attributes": {"occluded": False},
        }
    ],
}
YAML = "path: ./\ntrain: train.txt\n\nnames:\n  0: car\n"
LABELS = "0 " + " ".join(
    f"{value / (48 if index % 2 else 64):.6f}" for index, value in enumerate(RING)
)


def archive(folder: Path, files: dict[str, str | bytes]) -> Path:
    path = folder / "export.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in files.items():
            made.writestr(name, content)
    return path


def yolo_files(*, images: bool) -> dict[str, str | bytes]:
    files: dict[str, str | bytes] = {
        "data.yaml": YAML,
        "train.txt": "images/train/street/1.png\n",
        "labels/train/street/1.txt": f"{LABELS}\n",
    }
    return {**files, "images/train/street/1.png": sample_images.png(48, 64)} if images else files


def ring_of(image: ImageRecord) -> list[float]:
    (annotation,) = image.annotations
    assert isinstance(annotation.segmentation, Polygons)
    (((*corners,),),) = annotation.segmentation.parts
    return [value for corner in corners for value in corner]


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where archives are unpacked."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_coco_of_cvat_is_read(tmp_path: Path) -> None:
    files = {
        "annotations/instances_default.json": json.dumps(COCO),
        "images/street/1.png": sample_images.png(48, 64),
    }
    path = archive(tmp_path, files)

    data = open_dataset(path)
    (image,) = data.images

    assert identify(path).name == "zip"
    assert [each.name for each in data.categories] == ["car"]
    assert (image.file_name, image.size) == ("street/1.png", Size(48, 64))
    assert ring_of(image) == RING


def test_yolo_of_cvat_is_read(tmp_path: Path) -> None:
    data = open_dataset(archive(tmp_path, yolo_files(images=True)))
    (image,) = data.images

    assert [each.name for each in data.categories] == ["car"]
    assert (image.file_name, image.size) == ("train/street/1.png", Size(48, 64))
    assert ring_of(image) == pytest.approx(RING, abs=1e-3)


def test_yolo_of_cvat_without_images_needs_their_folder(tmp_path: Path) -> None:
    path = archive(tmp_path, yolo_files(images=False))
    photos = tmp_path / "photos"
    (photos / "street").mkdir(parents=True)
    (photos / "street" / "1.png").write_bytes(sample_images.png(48, 64))

    with pytest.raises(InvalidRequest):
        list(open_dataset(path).images)
    (image,) = open_dataset(path, images=photos).images

    assert (image.file_name, image.size) == ("train/street/1.png", Size(48, 64))


def test_unpacked_files_are_removed_with_the_data_set(tmp_path: Path, temporary: Path) -> None:
    data = open_dataset(archive(tmp_path, yolo_files(images=True)))
    images = iter(data.images)
    assert len(list(temporary.iterdir())) == 1

    del data
    gc.collect()
    assert len(list(images)) == 1
    del images
    gc.collect()

    assert list(temporary.iterdir()) == []


def test_members_stay_in_the_folder(tmp_path: Path, temporary: Path) -> None:
    outside = {"../../escaped.json": json.dumps(COCO)}

    data = open_dataset(archive(tmp_path, {**outside}))

    assert len(list(data.images)) == 1
    assert not (tmp_path / "escaped.json").exists()
    assert not (temporary / "escaped.json").exists()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"readme.txt": "x"}, "contains no data set that is known"),
        (
            {"a.json": json.dumps(COCO), "b.json": json.dumps(COCO)},
            r"contains several data sets: a\.json, b\.json",
        ),
    ],
)
def test_archives_without_one_data_set_are_refused(
    tmp_path: Path, temporary: Path, files: dict[str, str | bytes], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        open_dataset(archive(tmp_path, files))
    gc.collect()

    assert list(temporary.iterdir()) == []


def test_damaged_archive_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path, {"a.json": json.dumps(COCO)})
    data = bytearray(path.read_bytes())
    place = data.index(b"a.json") + len("a.json")
    data[place] ^= 0xFF
    path.write_bytes(data)

    with pytest.raises(InvalidRequest, match="cannot be unpacked"):
        open_dataset(path)


def test_archive_that_is_made_to_fill_a_disk_is_refused(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "_MAX_UNCHECKED_BYTES", 1 << 20)
    path = archive(tmp_path, {"a.json": json.dumps(COCO) + " " * (2 << 20)})

    with pytest.raises(InvalidRequest, match="bytes that become 2097"):
        open_dataset(path)
    gc.collect()

    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    "files", [{"a": "link", "a/b.json": "{}"}, {f"{'x' * 300}.json": json.dumps(COCO)}]
)
def test_members_that_cannot_be_files_are_named(
    tmp_path: Path, files: dict[str, str | bytes]
) -> None:
    with pytest.raises(InvalidRequest, match="' cannot be unpacked: "):
        open_dataset(archive(tmp_path, files))


def test_archive_that_is_larger_than_the_disk_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = archive(tmp_path, {"a.json": json.dumps(COCO)})
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)

    with pytest.raises(InvalidRequest, match="has 100 bytes free"):
        open_dataset(path)
