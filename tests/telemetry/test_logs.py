"""Lines of the log, ours and those of libraries."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
import structlog
from samserve.settings import LogSettings
from samserve.telemetry import logs


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, configuration = list(root.handlers), structlog.get_config()
    yield
    root.handlers[:] = handlers
    structlog.configure(**configuration)


def test_a_library_s_line_is_json_like_ours(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(LogSettings(format="json"))
    structlog.get_logger().info("ours", count=1)
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("library").exception("cannot export %s", "spans\nof today")

    ours, theirs = map(json.loads, capsys.readouterr().err.splitlines())
    assert (ours["event"], ours["level"], ours["count"]) == ("ours", "info", 1)
    assert (theirs["event"], theirs["level"]) == ("cannot export spans\nof today", "error")
    assert theirs["logger"] == "library"
    assert "ValueError: broken" in theirs["exception"]
    assert set(ours) - {"count"} <= set(theirs)


def test_what_libraries_say_below_a_warning_is_left_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure(LogSettings(level="debug"))
    logging.getLogger("library").info("chatter")
    logging.getLogger("library").warning("matters")

    assert "matters" in (err := capsys.readouterr().err)
    assert "chatter" not in err


def test_to_configure_again_does_not_say_everything_twice(
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
