"""Log lines of samserve and of libraries."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
import structlog
from samserve.settings import LogSettings
from samserve.telemetry import logs


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
