"""The comparison of families with their libraries runs, and both sides find the same masks."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from benchmarks import families
from tests.oracle import photos

OPERATIONS = ("Embed, 160x107", "Predict, 160x107", "AutoMask, 36 points, 160x107")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "sam2.1_hiera_tiny",
        pytest.param("edgetam", marks=pytest.mark.long),
        pytest.param("mobile_sam", marks=pytest.mark.long),
    ],
)
def test_families_are_compared_with_their_libraries(name: str, tmp_path: Path) -> None:
    image = families.photo(photos.coffee_427x640()[::4, ::4])
    chosen = argparse.Namespace(
        models=name, rounds=1, predictions=2, automask_rounds=1, points_per_side=6, threads=1
    )

    (report,) = families.run(chosen, tmp_path, {"160x107": image}, toy=True)

    text = report.text()
    results = {each.operation: each.agreement for each in report.comparisons}
    assert tuple(results) == OPERATIONS
    assert float(results[OPERATIONS[1]].removeprefix("IoU at least ")) > 0.98
    ours, theirs = (int(count) for count in re.findall(r"→(\d+) ", results[OPERATIONS[2]]))
    assert ours >= 3
    assert abs(ours - theirs) <= max(1, theirs * 0.02)
    assert all(f"| {operation} | " in text for operation in OPERATIONS)
    assert report.exported is not None
    assert report.exported.model_bytes > 1 << 20
    assert all(min(each) > 0 for each in report.memory.values())
