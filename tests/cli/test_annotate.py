"""`samserve annotate`: a data set from a folder."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pillow_heif
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from pycocotools.coco import COCO

from tests import sample_images
from tests.cli.annotating import FEW, lines, records
from tests.cli.conftest import FAKE, Command


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder as of a person who does not know data sets."""
    folder = tmp_path / "My Photos (1)"
    jpeg = sample_images.encode(sample_images.noise(40, 60), "JPEG")
    files = {
        "IMG 1.JPG": jpeg,
        "notes.txt": b"to do",
        ".hidden.jpg": jpeg,
        ".cache/small.jpg": jpeg,
        "summer [2024]/Käse.png": sample_images.png(),
        "summer [2024]/a\nb.webp": sample_images.encode(sample_images.noise(30, 20), "WEBP"),
        "summer [2024]/folder.jpg/scan.tif": sample_images.encode(
            sample_images.noise(9, 9), "TIFF"
        ),
        "summer [2024]/phone.HEIC": heic(sample_images.noise(48, 64)),
        "broken.jpg": jpeg[: len(jpeg) // 2],
        "text.jpg": b"no image",
        "empty.png": b"",
    }
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "gone.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(folder / "pipe.jpg")
    return folder


GOOD = {
    "IMG 1.JPG": (40, 60),
    "summer [2024]/Käse.png": (48, 64),
    "summer [2024]/a\nb.webp": (30, 20),
    "summer [2024]/folder.jpg/scan.tif": (9, 9),
    "summer [2024]/phone.HEIC": (48, 64),
}


def heic(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    pillow_heif.from_bytes("RGB", pixels.shape[1::-1], pixels.tobytes()).save(buffer)
    return buffer.getvalue()


# Of pycocotools, with NumPy 2.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_folder_of_all_kinds_of_files_becomes_one_coco_file(
    samserve: Command, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "masks"

    result = samserve("annotate", photos, "--out", out, *FEW)

    assert result.code == 3
    shown = lines(result.out)
    assert (shown["images"], shown["annotated"], shown["failed"]) == ("9", "5", "4")
    assert f"{photos}: 9 images, 1 other file left out" in result.err.splitlines()
    failures = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
    reasons = {each["file_name"]: each["reason"] for each in failures}
    assert reasons.keys() == {"broken.jpg", "text.jpg", "empty.png", "gone.jpg"}
    assert reasons["text.jpg"].startswith("is not an image")
    assert all(f"samserve: error: {name}: " in result.err for name in reasons)

    coco = COCO(str(out / "annotations.json"))
    sizes = {each["file_name"]: (each["height"], each["width"]) for each in coco.imgs.values()}
    assert sizes == GOOD
    assert len(coco.anns) == int(shown["masks"]) > 0
    assert [each["name"] for each in coco.loadCats(coco.getCatIds())] == ["object"]
    assert all(coco.annToMask(each).any() for each in coco.anns.values())


def test_records_have_ids_that_are_unique_and_follow_from_the_name(
    samserve: Command, photos: Path, tmp_path: Path
) -> None:
    for name in ("first", "second"):
        samserve("annotate", photos, "--out", tmp_path / name, *FEW)

    first, second = records(tmp_path / "first"), records(tmp_path / "second")
    assert first == second
    assert first.keys() == GOOD.keys()
    images = [each["image"]["image_id"] for each in first.values()]
    masks = [mask["id"] for each in first.values() for mask in each["annotations"]]
    for ids in (images, masks):
        assert len(set(ids)) == len(ids) > 1
        assert all(0 < each < 2**53 for each in ids)


def test_the_same_command_does_nothing_and_other_options_replace_records(
    samserve: Command, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "masks"
    samserve("annotate", photos, "--out", out, *FEW)
    before = records(out)
    written = {path: path.stat().st_mtime_ns for path in (out / "records").rglob("*.json")}

    again = samserve("annotate", photos, "--out", out, *FEW, "--points-per-batch", "1")
    unchanged = {path: path.stat().st_mtime_ns for path in written}
    (photos / "summer [2024]/Käse.png").write_bytes(sample_images.png(seed=5))
    changed_file = samserve("annotate", photos, "--out", out, *FEW)
    other_options = samserve("annotate", photos, "--out", out, *FEW, "--max-masks", "1")

    assert (lines(again.out)["annotated"], lines(again.out)["unchanged"]) == ("0", "5")
    assert unchanged == written
    assert (lines(changed_file.out)["annotated"], lines(changed_file.out)["unchanged"]) == (
        "1",
        "4",
    )
    assert lines(other_options.out)["annotated"] == "5"
    assert "the last run differed in options; its records are replaced" in other_options.err
    assert "the last run" not in changed_file.err
    after = records(out)
    assert {len(each["annotations"]) for each in after.values()} == {1}
    assert {len(each["annotations"]) for each in before.values()} != {1}


def test_a_record_whose_image_is_gone_is_kept_and_told(samserve: Command, tmp_path: Path) -> None:
    source, out = tmp_path / "images", tmp_path / "masks"
    source.mkdir()
    for name in ("a.png", "b.png"):
        (source / name).write_bytes(sample_images.png())
    samserve("annotate", source, "--out", out, *FEW)
    (source / "b.png").unlink()

    result = samserve("annotate", source, "--out", out, *FEW)

    assert result.code == 0
    assert "1 record whose image is not in SOURCE any more" in result.err
    assert records(out).keys() == {"a.png", "b.png"}
    coco = json.loads((out / "annotations.json").read_text())
    assert [each["file_name"] for each in coco["images"]] == ["a.png"]


@pytest.mark.parametrize("inside", ["masks", "masks/deeper"])
def test_an_output_inside_the_source_is_not_annotated(
    samserve: Command, tmp_path: Path, inside: str
) -> None:
    (tmp_path / "a.png").write_bytes(sample_images.png())
    out = tmp_path / inside
    samserve("annotate", tmp_path, "--out", out, *FEW)
    (out / "sheet.png").write_bytes(sample_images.png())

    result = samserve("annotate", tmp_path, "--out", out, *FEW)

    assert (result.code, lines(result.out)["images"]) == (0, "1")


def test_lists_archives_and_urls_are_sources_and_a_url_is_an_output(
    samserve: Command, photos: Path, tmp_path: Path
) -> None:
    names = ["IMG 1.JPG", "summer [2024]/Käse.png"]
    listed = photos / "list.txt"
    listed.write_text(f"\ufeff{names[0]}\r\n\n{photos / names[1]}\n")
    archive = tmp_path / "images.zip"
    memory = fsspec.filesystem("memory")
    with zipfile.ZipFile(archive, "w") as file:
        for name in names:
            file.write(photos / name, name)
            memory.pipe_file(f"/source/{name}", (photos / name).read_bytes())
    sources = (listed, archive, f"zip://::file://{archive}", "memory://source")

    for number, source in enumerate(sources):
        result = samserve("annotate", source, "--out", f"memory://out{number}", *FEW)
        again = samserve("annotate", source, "--out", f"memory://out{number}", *FEW)

        assert result.code == 0, result.err
        assert (lines(again.out)["unchanged"], lines(again.out)["images"]) == ("2", "2")
        coco = json.loads(memory.cat_file(f"/out{number}/annotations.json"))
        assert [each["file_name"] for each in coco["images"]] == names
        assert memory.exists(f"/out{number}/records/{names[1]}.json")


class Bucket(MemoryFileSystem):
    """Files with a tag for their content, as those of S3 have."""

    protocol = ("bucket",)
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    opened: ClassVar[list[str]] = []

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("bucket://", "memory://")))

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        found = super().ls(path, detail=True, **options)
        tagged = [
            each | {"ETag": hashlib.md5(self.store[each["name"]].getvalue()).hexdigest()}
            if each["type"] == "file"
            else each
            for each in found
        ]
        return tagged if detail else [each["name"] for each in tagged]

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        self.opened.append(path)
        return super().open(path, mode, **options)


def test_unchanged_files_of_a_bucket_are_not_downloaded_again(
    samserve: Command, tmp_path: Path
) -> None:
    fsspec.register_implementation("bucket", Bucket, clobber=True)
    bucket = Bucket()
    for number in range(3):
        bucket.pipe_file(f"/photos/{number}.png", sample_images.png(seed=number))
    samserve("annotate", "bucket://photos", "--out", tmp_path / "out", *FEW)
    bucket.pipe_file("/photos/1.png", sample_images.png(seed=9))
    bucket.opened.clear()

    result = samserve("annotate", "bucket://photos", "--out", tmp_path / "out", *FEW)

    assert (lines(result.out)["annotated"], lines(result.out)["unchanged"]) == ("1", "2")
    assert bucket.opened == ["/photos/1.png"]


def test_when_nothing_is_found_a_hint_names_the_thresholds(
    samserve: Command, tmp_path: Path
) -> None:
    source = tmp_path / "images"
    source.mkdir()
    (source / "a.png").write_bytes(sample_images.png())

    result = samserve(
        *("annotate", source, "--out", tmp_path / "out", *FAKE),
        *("--pred-iou-thresh", "1", "--points-per-side", "2"),
    )

    assert (result.code, lines(result.out)["masks"]) == (0, "0")
    assert "hint: nothing was found in 1 of 1 image: lower --pred-iou-thresh" in result.err


def test_usage_errors_come_before_any_work(samserve: Command, tmp_path: Path) -> None:
    source, foreign = tmp_path / "images", tmp_path / "foreign"
    for folder in (source, foreign, tmp_path / "none"):
        folder.mkdir()
    (source / "a.png").write_bytes(sample_images.png())
    (foreign / "annotations.json").write_text("{}")
    cases: list[tuple[tuple[object, ...], str]] = [
        ((source, "--out", source), "--out is SOURCE itself: name another folder, such as"),
        ((tmp_path / "nowhere", "--out", foreign), "--out"),
        ((tmp_path / "nowhere", "--out", tmp_path / "o"), "nowhere: does not exist"),
        ((tmp_path / "none", "--out", tmp_path / "o"), "contains no JPEG, PNG, WebP"),
        ((source, "--out", foreign), "has a file annotations.json of another origin"),
        ((source, "--out", source / "a.png"), "is a file"),
        ((source, "--out", tmp_path / "o", "--shard", "3/3"), "--shard '3/3': expected I/N"),
        (("nosuch://a/b", "--out", tmp_path / "o"), "Protocol not known: nosuch"),
        ((source, "--out", tmp_path / "o", "--server", "a:1,a:1"), "is named twice"),
    ]

    for arguments, text in cases:
        result = samserve("annotate", *arguments)
        assert (result.code, text in result.error) == (2, True), result
    assert not (tmp_path / "o").exists()
