"""Log lines of samserve and of libraries."""

from __future__ import annotations

import enum
import json
import logging
from collections.abc import Iterator

import pytest
import structlog
from samserve.settings import LogSettings
from samserve.telemetry import logs
from samserve.telemetry.console import console


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, configuration = list(root.handlers), structlog.get_config()
    yield
    root.handlers[:] = handlers
    structlog.configure(**configuration)


def test_log_lines_of_libraries_have_the_same_format(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(LogSettings(format="json"))
    structlog.get_logger().info("own", count=1)
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("library").exception("cannot export %s", "spans\nof today")

    own, library = map(json.loads, capsys.readouterr().err.splitlines())
    assert (own["event"], own["level"], own["count"]) == ("own", "info", 1)
    assert (library["event"], library["level"]) == ("cannot export spans\nof today", "error")
    assert library["logger"] == "library"
    assert "ValueError: broken" in library["exception"]
    assert set(own) - {"count"} <= set(library)


def test_library_lines_below_warning_are_not_logged(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure(LogSettings(level="debug"))
    logging.getLogger("library").info("chatter")
    logging.getLogger("library").warning("matters")

    assert "matters" in (err := capsys.readouterr().err)
    assert "chatter" not in err


def test_configuring_twice_does_not_duplicate_lines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure(LogSettings())
    logs.configure(LogSettings(level="error"))
    logging.getLogger("library").warning("a warning")
    logging.getLogger("library").error("an error")

    assert capsys.readouterr().err.count("an error") == 1
    logs.configure(LogSettings(level="error"))
    logging.getLogger("library").warning("a warning")
    assert not capsys.readouterr().err


class Word(enum.StrEnum):
    """A string that has a name."""

    ONE = "one"
    TWO = "two words"


@pytest.mark.parametrize("event", ["rpc", "", "an event of more than the thirty characters", 5])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"code": "OK", "reason": None, "sent_bytes": 282, "stages_ms": {"send": 0.1}, "a": ""},
        {"quote": "it's", "pair": "a=b", "tab": "a\tb", "line": "a\nb", "unicode": "é\u2028"},
        {"last": ""},
        {"bytes": b"x", "one": Word.ONE, "two": Word.TWO},
        {"logger": "library", "b": 1, "a": 2},
        {"exception": "Traceback\n  of a line", "a": 1},
        {"stack": "Stack", "a": 1},
    ],
)
def test_console_lines_are_those_of_structlog(fields: dict[str, object], event: object) -> None:
    common = {"event": event, "level": "info", "timestamp": "2026-01-01T00:00:00Z"}
    structlogs = structlog.dev.ConsoleRenderer(colors=False)

    line = console(colours=False)(None, "info", {**fields, **common})

    assert line == structlogs(None, "info", {**fields, **common})
