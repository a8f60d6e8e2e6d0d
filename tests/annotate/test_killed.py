"""A run that is killed again and again gives the records of one that is not."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.annotate.killed_runs import agreement, command, killed
from tests.annotate.photos import write_mixed
from tests.cli.conftest import FAKE

LOW = ("--pred-iou-thresh", "0.7", "--stability-score-thresh", "0.85")


@pytest.mark.slow
def test_a_killed_run_is_continued_without_a_trace(tmp_path: Path) -> None:
    options = (*FAKE, "--points-per-side", "4", "--concurrency", "2")

    check(tmp_path, options, images=24, kills=2, most=6)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_two_hundred_images_are_annotated_despite_ten_kills(tmp_path: Path) -> None:
    check(tmp_path, ("--points-per-side", "8", *LOW), images=200, kills=10, most=12)


def check(folder: Path, options: tuple[str, ...], images: int, kills: int, most: int) -> None:
    """Annotate mixed images with and without kills, and compare the records."""
    source, interrupted, whole = (folder / name for name in ("photos", "interrupted", "whole"))
    names = write_mixed(source, images, longest=480)
    arguments = command(source, interrupted, *options)

    written = killed(arguments, interrupted, kills, seed=1, most=most)
    for run in (arguments, command(source, whole, *options)):
        subprocess.run(run, check=True, capture_output=True)

    assert kills <= written < images
    files = {
        str(path.relative_to(interrupted)) for path in interrupted.rglob("*") if path.is_file()
    }
    own = {"dataset.json", "annotations.json"}
    assert files == own | {f"records/{name}.json" for name in names}
    found = agreement(interrupted, whole)
    assert (found.images, found.other_selection) == (images, [])
    assert found.masks > 0
    assert found.equal_pixels >= 0.9999
