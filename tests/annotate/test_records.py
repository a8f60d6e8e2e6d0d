"""Records are whole, and what killed processes leave is removed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from samserve.annotate import names
from samserve.annotate.outputs import Output
from samserve.annotate.records import Records, record_key
from samserve.datasets.types import Annotation, ImageRecord
from samserve.errors import InvalidRequest
from samserve.types import CocoRle, Size

RECORD = ImageRecord(
    "a b/c\nd.jpg",
    Size(2, 3),
    (Annotation(CocoRle(Size(2, 3), "15"), id=7),),
    image_id=3,
    metadata={"key": "k", "sha256": "0"},
)


@pytest.fixture(params=["folder", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "out") if request.param == "folder" else f"memory:/{tmp_path}"


def test_a_record_is_read_as_it_was_written(url: str) -> None:
    records = Records(url)

    assert records.key(RECORD.file_name) is None
    records.write(RECORD)
    records.write(replace(RECORD, metadata={"key": "other"}))

    assert records.key(RECORD.file_name) == "other"
    found = records.read(RECORD.file_name)
    assert found
    assert (found.file_name, found.size, found.image_id) == (RECORD.file_name, RECORD.size, 3)
    assert list(records.names()) == [RECORD.file_name]


@pytest.mark.parametrize(
    "content", [b"", b'{"samserve": {"key', b"[]", b'{"samserve": 1}', b"\0" * 9]
)
def test_what_is_no_whole_record_counts_as_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "records/a.jpg.json"
    path.parent.mkdir()
    path.write_bytes(content)

    assert Records(str(tmp_path)).key("a.jpg") is None


@pytest.mark.parametrize("name", ["../a.jpg", "/a.jpg", "a/../../b.jpg", ""])
def test_a_name_that_leaves_the_output_is_rejected(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidRequest, match="leaves the folder"):
        Records(str(tmp_path)).write(replace(RECORD, file_name=name))
    assert list(tmp_path.rglob("*")) == []


def test_files_of_dead_processes_are_removed_and_those_of_others_are_kept(tmp_path: Path) -> None:
    output = Output(str(tmp_path))
    output.prepare()
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    host, here = socket.gethostname(), os.getpid()
    kept = {f"{host}-{here}-00", f"other-host-{dead.pid}-00"}
    for name in (*kept, f"{host}-{dead.pid}-00", f".{host}-{dead.pid}-00.tmp1"):
        (tmp_path / ".partial" / name).write_bytes(b"half")
    old = tmp_path / ".partial/other-host-1-00"
    old.write_bytes(b"half")
    os.utime(old, (0, 0))

    output.prepare()

    assert {path.name for path in (tmp_path / ".partial").iterdir()} == kept
    assert list(Records(str(tmp_path)).names()) == []


def test_a_failed_write_keeps_the_former_file(url: str) -> None:
    output = Output(url)
    output.write("x.json", b"former")

    with pytest.raises(IsADirectoryError), output.replacing("x.json") as path:
        path.parent.write_bytes(b"half")

    assert output.read("x.json") == b"former"
    assert [each for each in output.find("") if not each.endswith("x.json")] == []


def test_the_key_depends_on_file_weights_and_options_only() -> None:
    key = record_key("f", "w", {"a": 1, "b": [0.5]})

    assert key == record_key("f", "w", {"b": [0.5], "a": 1})
    others = [("g", "w", {"a": 1, "b": [0.5]}), ("f", "v", {"a": 1, "b": [0.5]}), ("f", "w", {})]
    assert key not in {record_key(*each) for each in others}


def test_ids_are_positive_and_distinct() -> None:
    ids = [names.image_id(f"{number}.jpg") for number in range(5000)]
    ids += [names.annotation_id("a.jpg", number) for number in range(5000)]

    assert len(set(ids)) == len(ids)
    assert all(0 < each < 2**53 for each in ids)
    assert names.image_id("\udcff.jpg") != names.image_id("?.jpg")
