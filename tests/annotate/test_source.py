"""The images of folders, lists, archives and URLs."""

from __future__ import annotations

import hashlib
import itertools
import os
import pickle
import zipfile
from pathlib import Path

import fsspec
import pytest
from samserve.annotate.shards import Shard
from samserve.annotate.source import Source
from samserve.errors import InvalidRequest


def write(folder: Path, *names: str | bytes) -> None:
    for name in names:
        path = Path(os.fsdecode(os.fsencode(folder) + b"/" + os.fsencode(name)))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(name))


def names(source: Source) -> list[str]:
    return [image.name for image in source.find().images]


def test_a_folder_has_the_images_of_its_subfolders_by_name(tmp_path: Path) -> None:
    odd = ["b [1]*?.JPG", "a b/ä\n#.png", "a b/c::d.webp", "a b/100%.tif"]
    write(tmp_path, *odd, ".hidden.png", ".git/x.png", "a b/readme.md", "noext", b"bytes \xff.gif")

    source = Source(str(tmp_path))
    found = source.find()

    assert [image.name for image in found.images] == sorted([*odd, "bytes \udcff.gif"])
    assert found.skipped == 2
    for image in found.images:
        assert source.read(image) == os.fsencode(image.name)
        assert source.sha256(image) == hashlib.sha256(os.fsencode(image.name)).hexdigest()


def test_links_to_folders_and_pipes_are_left_out_and_broken_links_are_read(tmp_path: Path) -> None:
    write(tmp_path, "real.png", "folder/a.png")
    (tmp_path / "linked.png").symlink_to("real.png")
    (tmp_path / "broken.png").symlink_to("nowhere")
    (tmp_path / "folder.png").symlink_to("folder")
    (tmp_path / "loop").symlink_to(".")
    os.mkfifo(tmp_path / "pipe.png")

    source = Source(str(tmp_path))

    assert names(source) == ["broken.png", "folder/a.png", "linked.png", "real.png"]
    with pytest.raises(OSError, match="No such file"):
        source.read(source.find().images[0])


@pytest.mark.parametrize("text", ["a b.png\n", "a b.png", "\ufeffa b.png\r\n\r\n"])
def test_a_list_names_images_by_lines(tmp_path: Path, text: str) -> None:
    write(tmp_path, "a b.png")
    (tmp_path / "list.txt").write_text(text)

    source = Source(str(tmp_path / "list.txt"))

    assert names(source) == ["a b.png"]
    assert source.read(source.find().images[0]) == b"a b.png"


def test_names_of_a_list_never_leave_the_output_and_are_unique(tmp_path: Path) -> None:
    write(tmp_path, "lists/x.png", "other/y.png")
    fsspec.filesystem("memory").pipe_file("/bucket/z.png", b"z")
    other = tmp_path / "other/y.png"
    lines = ["x.png", "../other/y.png", str(other), "memory://bucket/z.png", "x.png"]
    (tmp_path / "lists/all.txt").write_text("\n".join(lines))

    source = Source(str(tmp_path / "lists/all.txt"))
    found = source.find()

    assert [image.name for image in found.images] == [
        *("x.png", "other/y.png", str(other).lstrip("/"), "bucket/z.png")
    ]
    assert [source.read(image) for image in found.images] == [
        *(b"lists/x.png", b"other/y.png", b"other/y.png", b"z")
    ]
    assert [str(each) for each in found.failures] == ["x.png: line 5 is in the list twice"]


def test_secrets_of_urls_are_not_in_names_and_texts(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("https://user:secret@host/a.jpg?signature=secret\n")

    (image,) = Source(str(tmp_path / "list.txt")).find().images

    assert image.name == "host/a.jpg"
    assert str(Source("https://user:secret@host/list?token=secret")) == "https://host/list"


def test_images_of_an_archive_are_read_and_names_do_not_leave_it(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("a/b.png", b"b")
        archive.writestr("c.txt", b"c")

    source = pickle.loads(pickle.dumps(Source(str(tmp_path / "all.zip"))))

    assert (names(source), source.find().skipped) == (["a/b.png"], 1)
    assert source.read(source.find().images[0]) == b"b"


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("nowhere", None, "does not exist"),
        ("data.bin", b"\0\1", "is neither an image nor a text file"),
        ("empty.txt", b"\n", "contains no JPEG"),
        ("broken.zip", b"PK nothing", "not a zip file"),
    ],
)
def test_a_source_without_images_is_rejected(
    tmp_path: Path, name: str, content: bytes | None, text: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)

    with pytest.raises(InvalidRequest, match=text) as caught:
        Source(str(tmp_path / name)).find()
    assert caught.value.violations[0].field == "source"


def test_an_excluded_folder_is_not_listed(tmp_path: Path) -> None:
    write(tmp_path, "a.png", "out/b.png", "out2/c.png")

    found = Source(str(tmp_path)).find(exclude=[str(tmp_path / "out")])

    assert [image.name for image in found.images] == ["a.png", "out2/c.png"]


def test_shards_have_every_name_once_and_about_as_many() -> None:
    shards = [Shard.parse(f"{index}/4") for index in range(4)]
    selected = [
        [number for number in range(2000) if each.selects(f"{number}.png")] for each in shards
    ]

    assert sorted(itertools.chain(*selected)) == list(range(2000))
    assert min(map(len, selected)) > 400
    assert [str(each) for each in shards] == ["0/4", "1/4", "2/4", "3/4"]


@pytest.mark.parametrize(
    "text", ["", "1", "4/4", "-1/4", "1/0", "1/4/5", "a/b", "0/1000000", "٣/4"]
)
def test_a_shard_that_is_none_is_rejected(text: str) -> None:
    with pytest.raises(InvalidRequest, match="expected I/N with I from 0 to N - 1"):
        Shard.parse(text)
