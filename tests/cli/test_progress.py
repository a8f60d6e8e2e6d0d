"""Lines of progress without a terminal, bars on one, and why AutoMask kept no mask."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from samserve.cli import progress
from samserve.cli.automask import _hint
from samserve.cli.progress import TenPercentSteps
from samserve.client import FilterCount

from tests.cli.conftest import FAKE, Command
from tests.support.clock import Clock


def lines_of(
    capsys: pytest.CaptureFixture[str], steps: list[tuple[float, int]], total: int, **options: Any
) -> list[str]:
    """Return the lines that steps, as seconds since the step before and the amount, write."""
    clock = Clock()
    lines = TenPercentSteps(lambda done, all_: f"{done} of {all_}", now=clock, **options)
    for seconds, done in steps:
        clock.now += seconds
        lines(done, total)
    return capsys.readouterr().err.splitlines()


def test_lines_have_the_time_left_at_the_speed_until_then(
    capsys: pytest.CaptureFixture[str],
) -> None:
    steps = [(10, 10), (1, 15), (19, 30), (0, 30), (45, 100)]

    assert lines_of(capsys, steps, 100) == [
        "10 of 100, about 2 min left",
        "30 of 100, about 70 s left",
        "100 of 100",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0.1, ""), (3, ", about 3 s left"), (89, ", about 89 s left")),
        *((100, ", about 2 min left"), (7380, ", about 2 h 3 min left")),
    ],
)
def test_the_time_left_has_a_suitable_unit(
    capsys: pytest.CaptureFixture[str], seconds: float, text: str
) -> None:
    assert lines_of(capsys, [(seconds, 5)], 10) == [f"5 of 10{text}"]


def test_no_line_is_written_in_the_silent_time(capsys: pytest.CaptureFixture[str]) -> None:
    steps = [(2, 10), (2, 20), (2, 30), (1, 40)]

    assert lines_of(capsys, steps, 100, silent_s=5) == [
        "30 of 100, about 14 s left",
        "40 of 100, about 10 s left",
    ]


def test_an_unknown_total_writes_no_lines(capsys: pytest.CaptureFixture[str]) -> None:
    lines = TenPercentSteps(lambda done, total: "never")

    lines(5, None)
    lines(5, 0)

    assert capsys.readouterr().err == ""


def bytes_bar() -> Any:
    return progress.byte_progress("receiving")


@pytest.mark.parametrize("bar", [progress.point_progress, bytes_bar], ids=["points", "bytes"])
def test_bars_on_a_terminal_show_the_time_left(
    monkeypatch: pytest.MonkeyPatch, bar: Callable[[], Any]
) -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=100, legacy_windows=False)
    monkeypatch.setattr(progress, "_console", lambda: console)

    with bar() as update:
        update(1 << 20, 4 << 20)
    with bar() as update:
        update(4 << 20, 4 << 20)

    # Unknown before the second update, and zero at the end.
    assert "-:--:--" in output.getvalue()
    assert "0:00:00" in output.getvalue()


def test_a_bar_of_images_has_the_mean_rate_without_those_that_were_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = io.StringIO()
    clock = Clock()
    console = Console(file=output, force_terminal=True, width=80, get_time=clock)
    monkeypatch.setattr(progress, "_console", lambda: console)

    with progress.image_progress("annotating", 100) as advance:
        for _ in range(90):
            advance(False)
        clock.now += 20
        # Two at once: the rate of the last moment would be far above the mean.
        advance(True)
        advance(True)

    assert "0:00:20" in output.getvalue()
    assert " 0.10 images/s, about 80 s left" in output.getvalue()


def counts(**numbers: tuple[int, int]) -> tuple[FilterCount, ...]:
    return tuple(FilterCount(name, *each) for name, each in numbers.items())


@pytest.mark.parametrize(
    ("filters", "text"),
    [
        (
            counts(pred_iou=(300, 0), stability_score=(0, 0)),
            "hint: pred_iou dropped 300 of 300 (lower --pred-iou-thresh)",
        ),
        (
            counts(pred_iou=(300, 40), stability_score=(40, 0), box_nms=(0, 0)),
            "hint: pred_iou dropped 260 of 300 (lower --pred-iou-thresh); "
            "stability_score dropped 40 of 40 (lower --stability-score-thresh)",
        ),
        (
            counts(pred_iou=(300, 290), stability_score=(290, 280), crop_edge=(280, 0)),
            "hint: crop_edge dropped 280 of 280 (use fewer layers with --crop-n-layers, or "
            "overlap them with --crop-overlap-ratio)",
        ),
        (
            counts(pred_iou=(9, 9), of_another_server=(9, 0)),
            "hint: of_another_server dropped 9 of 9",
        ),
        (
            counts(pred_iou=(0, 0)),
            "hint: no grid point was evaluated: use a larger --roi or more --points-per-side",
        ),
        (
            (),
            "hint: no grid point was evaluated: use a larger --roi or more --points-per-side",
        ),
    ],
)
def test_the_hint_names_the_filters_that_dropped_the_masks(
    filters: tuple[FilterCount, ...], text: str
) -> None:
    assert _hint(filters) == text


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--pred-iou-thresh", "1"), "hint: pred_iou dropped "),
        (("--stability-score-thresh", "1", "--pred-iou-thresh", "0"), "lower --stability-score"),
    ],
)
def test_automask_without_a_mask_prints_a_hint(
    samserve: Command, image: Path, options: tuple[str, ...], text: str
) -> None:
    nothing = samserve("automask", image, "--points-per-side", "4", *options, *FAKE)
    something = samserve("automask", image, "--points-per-side", "4", *FAKE)

    assert (nothing.code, nothing.out) == (0, "")
    assert text in nothing.err
    assert "hint" not in something.err
