"""Files that change while the server runs."""

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
        raise Misconfigured("numbers: is none") from None


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    """What is logged in the test."""
    with structlog.testing.capture_logs() as lines:
        yield lines


@pytest.fixture
def mount(tmp_path: Path) -> Mounted:
    """Two files, that hold 1 and 2."""
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
def test_a_file_is_read_again_when_it_changes_and_only_then(
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
    assert [line["event"] for line in logged] == ["read again"]


def test_files_are_followed_through_links(mount: Mounted, logged: list[Any]) -> None:
    file = ReloadableFile("numbers", paths_of(mount), number)
    assert file.value == 12

    mount.swap(a="3", b="4")
    file.refresh()

    assert (file.value, file.healthy) == (34, True)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "content": lambda path: path.write_text("one"),
    "gone": lambda path: path.unlink(),
    "too large": lambda path: path.write_text("2" * 11),
    "folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_file_that_got_worse_is_logged_once_and_kept_as_it_was(
    tmp_path: Path, logged: list[Any], damage: Callable[[Path], Any]
) -> None:
    path = tmp_path / "number"
    path.write_text("1")
    file = ReloadableFile("numbers", [path], number, most_bytes=10)

    damage(path)
    for _ in range(3):
        file.refresh()

    assert (file.value, file.healthy) == (1, False)
    assert [line["event"] for line in logged] == ["kept the old content"]
    if path.is_dir():
        path.rmdir()
    path.write_text("3")
    file.refresh()
    assert (file.value, file.healthy) == (3, True)


def test_each_change_that_cannot_be_used_is_raised_once(tmp_path: Path) -> None:
    path = tmp_path / "number"
    path.write_text("1")
    file = ReloadableFile("numbers", [path], number)

    for damage in ("one", "two and more"):
        path.write_text(damage)
        with pytest.raises(Misconfigured):
            file.reload()
        assert not file.reload()
    path.write_text("3")

    assert file.reload()
    assert not file.reload()
    assert file.value == 3


def test_an_unexpected_error_of_a_parser_keeps_the_old_content(
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


def test_files_that_are_exchanged_while_they_are_read_are_not_mixed(mount: Mounted) -> None:
    first, second = paths_of(mount)
    exchanges = [{"a": "5", "b": "6"}]
    last = Opened(second)
    last.before = lambda: mount.swap(**exchanges.pop()) if exchanges else None

    file = ReloadableFile("numbers", [first, last], number)

    assert (file.value, file.healthy) == (56, True)


def test_files_that_never_rest_are_given_up(mount: Mounted) -> None:
    path = Opened(mount.path("a"))
    path.before = mount.swap

    with pytest.raises(Misconfigured, match="changed while it was being read"):
        ReloadableFile("numbers", [path], number)


def test_a_missing_file_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="No such file"):
        ReloadableFile("numbers", [tmp_path / "none"], number)
