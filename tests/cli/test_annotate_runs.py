"""Runs of `samserve annotate`: shards, servers that reject calls, and interruptions."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from tests import sample_images
from tests.cli.annotating import FEW, lines, records
from tests.cli.conftest import Command
from tests.support.waiting import until_sync


def test_shards_annotate_every_image_once_and_write_no_coco_file(
    samserve: Command, tmp_path: Path
) -> None:
    source, out = tmp_path / "images", tmp_path / "masks"
    source.mkdir()
    for number in range(12):
        (source / f"{number}.png").write_bytes(sample_images.png(seed=number))
    (source / "text.jpg").write_bytes(b"no image")

    results = [
        samserve("annotate", source, "--out", out, *FEW, "--shard", f"{index}/3")
        for index in range(3)
    ]

    assert sorted(each.code for each in results) == [0, 0, 3]
    assert sum(int(lines(each.out)["annotated"]) for each in results) == 12
    assert all(lines(each.out)["annotated"] != "0" for each in results)
    assert len(records(out)) == 12
    assert not (out / "annotations.json").exists()
    assert len(list(out.glob("failures-?-of-3.jsonl"))) == 1


def test_a_server_that_does_not_respond_ends_the_run(samserve: Command, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(sample_images.png())

    result = samserve("annotate", tmp_path, "--out", tmp_path / "o", "--server", "127.0.0.1:1")

    assert result.code == 1
    assert "the server is unreachable" in result.err


def test_calls_that_a_busy_server_rejects_are_repeated(samserve: Command, tmp_path: Path) -> None:
    source = tmp_path / "images"
    source.mkdir()
    for number in range(3):
        (source / f"{number}.png").write_bytes(sample_images.png(seed=number))
    limit = ("--set", "admission.max_concurrent_automask=1", "--concurrency", "3")

    result = samserve("annotate", source, "--out", tmp_path / "out", *FEW, *limit)

    assert (result.code, lines(result.out)["annotated"]) == (0, "3")
    assert result.err.count("retrying after the delay that the server returned") == 1


def test_ctrl_c_keeps_what_is_done_and_says_how_to_continue(tmp_path: Path) -> None:
    source, out = tmp_path / "images", tmp_path / "out"
    source.mkdir()
    for number in range(500):
        (source / f"{number}.png").write_bytes(sample_images.png(seed=number))
    arguments = (sys.executable, "-m", "samserve", "annotate", source, "--out", out, *FEW)

    with subprocess.Popen(list(map(str, arguments)), stderr=subprocess.PIPE, text=True) as run:
        until_sync(lambda: any((out / "records").glob("*.json")))
        run.send_signal(signal.SIGINT)
        _, written = run.communicate()

    assert run.returncode == 130
    assert written.splitlines()[-2:] == [
        "the images that are done are kept: the same command continues",
        "samserve: error: interrupted",
    ]
    assert 0 < len(records(out)) < 500
    assert not list((out / ".partial").iterdir())
