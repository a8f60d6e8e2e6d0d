"""The page of benchmarks is made from the published results."""

from __future__ import annotations

import pytest

from benchmarks import document, results
from benchmarks.parts import PARTS
from benchmarks.results import Comparison, Cost, Result


def test_ratio_is_that_of_medians_with_quartiles_of_blocks() -> None:
    ours, theirs = ([Cost(each, 1.0) for each in wall] for wall in ((1, 2, 6), (2, 4, 8)))
    comparison = Comparison("Predict", "torch", ours, theirs)

    ratio = comparison.ratio("wall_s")

    assert (ratio.median, ratio.low, ratio.high) == (0.5, 0.5, 0.625)
    assert "| 2 s, CPU 1 s | 4 s, CPU 1 s | 0.50 (0.50-0.62) | 1.00 (1.00-1.00) |" in (
        document.tables(Result("predict", [comparison]))
    )


def test_every_part_has_a_place_in_the_page() -> None:
    page = document.PAGE.read_text(encoding="utf-8")

    assert document.filled(page, [Result(name) for name in PARTS])
    with pytest.raises(ValueError, match="0 places for the results of another"):
        document.filled(page, [Result("another")])


def test_page_has_the_published_results() -> None:
    page = document.PAGE.read_text(encoding="utf-8")

    assert document.filled(page, results.load(document.FILE)) == page
