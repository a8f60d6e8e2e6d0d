"""Reloading of files that change while the server runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path, PosixPath
from typing import Any

import pytest
import structlog
from samserve.errors import Misconfigured
from samserve.system.reloading import ReloadableFile

from tests.support.certificates import Mounted


def number(*contents: bytes) -> int:
    try:
        return int(b"".join(contents))
    except ValueError:
        raise Misconfigured("numbers: is not a number") from None


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    """The log entries of the test."""
    with structlog.testing.capture_logs() as lines:
        yield lines


@pytest.fixture
def mount(tmp_path: Path) -> Mounted:
    """Two files that contain 1 and 2."""
    return Mounted(tmp_path / "mounted", a="1", b="2")


def paths_of(mount: Mounted) -> list[Path]:
    return [mount.path("a"), mount.path("b")]


CHANGES: dict[str, Callable[[Path], Any]] = {
    "written to": lambda path: path.write_text("3"),
    "written at the same time": lambda path: (
        path.write_text("3"),
        os.utime(path, ns=(0, path.stat().st_mtime_ns)),
    ),
    "renamed": lambda path: (
        path.with_suffix(".new").write_text("3") and path.with_suffix(".new").replace(path)
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_file_is_reloaded_only_when_it_changes(
    tmp_path: Path, logged: list[Any], change: Callable[[Path], Any]
) -> None:
    path, reads = tmp_path / "number", []
    path.write_text("1")
    file = ReloadableFile(
        "numbers", [path], lambda content: reads.append(content) or number(content)
    )
    file.refresh()
    assert (file.value, len(reads)) == (1, 1)

    change(path)
    file.refresh()

    assert (file.value, file.healthy) == (3, True)
    assert [line["event"] for line in logged] == ["config reloaded"]


def test_symbolic_links_are_followed(mount: Mounted, logged: list[Any]) -> None:
    file = ReloadableFile("numbers", paths_of(mount), number)
    assert file.value == 12

    mount.swap(a="3", b="4")
    file.refresh()

    assert (file.value, file.healthy) == (34, True)


INVALID: dict[str, Callable[[Path], Any]] = {
    "content": lambda path: path.write_text("one"),
    "missing": lambda path: path.unlink(),
    "too large": lambda path: path.write_text("2" * 11),
    "folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("invalidate", INVALID.values(), ids=INVALID)
def test_a_failed_reload_is_logged_once_and_the_previous_content_stays(
    tmp_path: Path, logged: list[Any], invalidate: Callable[[Path], Any]
) -> None:
    path = tmp_path / "number"
    path.write_text("1")
    file = ReloadableFile("numbers", [path], number, max_bytes=10)

    invalidate(path)
    for _ in range(3):
        file.refresh()

    assert (file.value, file.healthy) == (1, False)
    assert [line["event"] for line in logged] == ["config reload failed"]
    if path.is_dir():
        path.rmdir()
    path.write_text("3")
    file.refresh()
    assert (file.value, file.healthy) == (3, True)


def test_each_invalid_change_is_raised_once(tmp_path: Path) -> None:
    path = tmp_path / "number"
    path.write_text("1")
    file = ReloadableFile("numbers", [path], number)

    for content in ("one", "two and more"):
        path.write_text(content)
        with pytest.raises(Misconfigured):
            file.reload()
        assert not file.reload()
    path.write_text("3")

    assert file.reload()
    assert not file.reload()
    assert file.value == 3


def test_after_an_unexpected_parser_error_the_previous_content_stays(
    tmp_path: Path, logged: list[Any]
) -> None:
    path = tmp_path / "number"
    path.write_text("1")

    def parse(content: bytes) -> int:
        if content == b"23":
            raise LookupError("a secret from the file")
        return int(content)

    file = ReloadableFile("numbers", [path], parse)
    path.write_text("23")
    file.refresh()

    assert (file.value, file.healthy) == (1, False)
    assert logged[0]["reason"] == "numbers: LookupError while reading"


class Opened(PosixPath):
    """A path that calls ``before`` whenever it is opened."""

    before: Callable[[], None]

    def open(self, *args: Any, **kwargs: Any) -> Any:
        self.before()
        return super().open(*args, **kwargs)


def test_files_of_different_versions_are_not_mixed(mount: Mounted) -> None:
    first, second = paths_of(mount)
    replacements = [{"a": "5", "b": "6"}]
    last = Opened(second)
    last.before = lambda: mount.swap(**replacements.pop()) if replacements else None

    file = ReloadableFile("numbers", [first, last], number)

    assert (file.value, file.healthy) == (56, True)


def test_files_that_change_all_the_time_are_an_error(mount: Mounted) -> None:
    path = Opened(mount.path("a"))
    path.before = mount.swap

    with pytest.raises(Misconfigured, match="changed while it was being read"):
        ReloadableFile("numbers", [path], number)


def test_a_missing_file_is_an_error_at_startup(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="No such file"):
        ReloadableFile("numbers", [tmp_path / "none"], number)
