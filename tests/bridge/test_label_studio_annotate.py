"""`samserve label-studio annotate`, with a stub of Label Studio."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import sample_images
from tests.bridge.label_studio import StubServer, mask_of, stub_server
from tests.cli.conftest import FAKE, Command, samserve
from tests.tools.label_studio.projects import CONFIG

__all__ = ["samserve"]

IMAGE = sample_images.png(48, 64)
TASKS = 5
QUICK = ("--points-per-side", "3")


@pytest.fixture
def server() -> Iterator[StubServer]:
    with stub_server() as stub:
        stub.label_config = CONFIG
        stub.add_tasks(IMAGE, TASKS)
        yield stub


@pytest.fixture
def arguments(server: StubServer, tmp_path: Path) -> tuple[str, ...]:
    token = tmp_path / "access"
    token.write_text(server.personal)
    project = ("--url", server.url, "--project", "1", "--access-token-file", str(token))
    return ("label-studio", "annotate", *project, *QUICK, *FAKE)


def test_every_task_gets_a_prediction_of_everything(
    samserve: Command, server: StubServer, arguments: tuple[str, ...]
) -> None:
    result = samserve(*arguments)

    assert result.code == 0, result.err
    made = [task["predictions"] for task in server.tasks]
    assert [len(each) for each in made] == [1] * TASKS
    regions = [each["result"] for (each,) in made]
    assert all(each["type"] == "brushlabels" for each in regions[0])
    assert all(mask_of(each).any() for each in regions[0])
    assert made[0][0]["model_version"] == "fake fake-1"
    count = sum(map(len, regions))
    assert result.out.splitlines() == [
        *(f"annotated: {TASKS}", f"regions: {count}", "skipped: 0", "failed: 0"),
    ]


def test_second_run_skips_what_the_first_has_done(
    samserve: Command, server: StubServer, arguments: tuple[str, ...]
) -> None:
    first = {"task": 2, "model_version": "fake fake-1", "result": []}
    other = {"task": 3, "model_version": "fake fake-0", "result": []}
    server.tasks[1]["predictions"].append(first)
    server.tasks[2]["predictions"].append(other)

    assert "skipped: 1" in samserve(*arguments).out
    again = samserve(*arguments)

    assert again.out.splitlines()[0] == "annotated: 0"
    assert f"skipped: {TASKS}" in again.out
    assert [len(task["predictions"]) for task in server.tasks] == [1, 1, 2, 1, 1]


def test_all_pages_of_tasks_are_read(
    samserve: Command, server: StubServer, arguments: tuple[str, ...]
) -> None:
    server.add_tasks(IMAGE, 230)
    for task in server.tasks[:-1]:
        done = {"task": task["id"], "model_version": "fake fake-1", "result": []}
        task["predictions"].append(done)

    result = samserve(*arguments)

    assert result.out.splitlines()[::2] == ["annotated: 1", f"skipped: {TASKS + 229}"]
    assert server.tasks[-1]["predictions"]


def test_failed_tasks_are_reported_and_the_others_annotated(
    samserve: Command, server: StubServer, arguments: tuple[str, ...]
) -> None:
    server.images["/data/upload/1/2.png"] = b"no image"
    del server.images["/data/upload/1/3.png"]
    server.tasks[3]["data"] = {}

    result = samserve(*arguments)

    assert result.code == 1
    assert "annotated: 2" in result.out
    assert "failed: 3" in result.out
    errors = [line for line in result.err.splitlines() if line.startswith("samserve: error: ")]
    assert [line.split(": ")[2] for line in sorted(errors)] == ["task 2", "task 3", "task 4"]
    assert "answered with status 404" in sorted(errors)[1]


def test_run_ends_when_label_studio_does_not_take_predictions(
    samserve: Command, server: StubServer, arguments: tuple[str, ...]
) -> None:
    server.accepts_predictions = False

    result = samserve(*arguments, "--concurrency", "1")

    assert result.code == 1
    assert result.out.splitlines()[0] == "annotated: 0"
    assert "Label Studio answered with status 503" in result.err
    # No masks are computed that could not be delivered.
    assert len(server.paths("/api/projects/1/import/")) == 1


def test_label_chooses_the_control(
    samserve: Command, server: StubServer, arguments: tuple[str, ...]
) -> None:
    assert samserve(*arguments, "--label", "Outline").code == 0

    (region, *_) = server.tasks[0]["predictions"][0]["result"]
    assert (region["from_name"], region["value"]["polygonlabels"]) == ("polygon", ["Outline"])


def test_masks_over_the_maximum_area_are_left_out(
    samserve: Command, server: StubServer, arguments: tuple[str, ...]
) -> None:
    samserve(*arguments)
    all_areas = [int(mask_of(each).sum()) for each in server.tasks[0]["predictions"][0]["result"]]
    for task in server.tasks:
        task["predictions"].clear()
    middle = sorted(all_areas)[len(all_areas) // 2]

    samserve(*arguments, "--max-area", str(middle / (48 * 64)))

    areas = [int(mask_of(each).sum()) for each in server.tasks[0]["predictions"][0]["result"]]
    assert areas == [area for area in all_areas if area <= middle]
    assert 0 < len(areas) < len(all_areas)


def test_label_that_no_control_has_is_refused(
    samserve: Command, arguments: tuple[str, ...]
) -> None:
    result = samserve(*arguments, "--label", "Other")

    assert result.code == 1
    assert "has no <BrushLabels> or <PolygonLabels> with the label 'Other'" in result.err


def test_token_that_is_not_accepted_ends_the_command(
    samserve: Command, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "access").write_text("another-token")

    result = samserve(*arguments)

    assert result.code == 1
    assert "Label Studio does not accept the token" in result.err
    assert "another-token" not in result.err


def test_url_that_is_none_is_a_usage_error(samserve: Command, arguments: tuple[str, ...]) -> None:
    for url in ("label-studio", "ftp://host", "http://user@host", "http://host/?x=1", "http://["):
        changed = [url if each.startswith("http://") else each for each in arguments]
        assert samserve(*changed).code == 2


def test_server_that_is_none_of_label_studio_says_so(
    samserve: Command, server: StubServer, arguments: tuple[str, ...]
) -> None:
    server.label_config = json.loads("null")

    result = samserve(*arguments)

    assert "in a form that is not known; is its URL right?" in result.err
