"""Runs a test again in which tritonserver itself has crashed, and for no other reason.

24.10 ends by a signal of its own now and then when requests are cancelled (docs/triton.md): that
says nothing of what is tested.  A test that fails for any other reason has failed, also if it has
killed tritonserver.  A pytest plugin, which also works in a worker of pytest-xdist.
"""

from __future__ import annotations

import time
import warnings

import pytest
from _pytest.runner import runtestprotocol

from harness.triton.server import crashes

ATTEMPTS = 3
# Connections break a moment before the process can be waited for.
_NOTICED_S, _POLL_S = 1.0, 0.05


def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    """Do as pytest does, and again after a crash; only the last attempt is reported."""
    place = {"nodeid": item.nodeid, "location": item.location}
    item.ihook.pytest_runtest_logstart(**place)
    for attempt in range(1, ATTEMPTS + 1):
        before = len(crashes())
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
        failed = any(report.failed for report in reports)
        if not failed or attempt == ATTEMPTS or not _crashed_since(before):
            break
        _say(item, f"tritonserver crashed in attempt {attempt}; the test runs again")
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(**place)
    return True


def _crashed_since(before: int) -> bool:
    deadline = time.monotonic() + _NOTICED_S
    while len(crashes()) == before and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return len(crashes()) > before


def _say(item: pytest.Item, text: str) -> None:
    """Put a line into the summary of warnings, which a worker hands to the controller."""
    path, line, _ = item.location
    warning = pytest.PytestWarning(text)
    message = warnings.WarningMessage(warning, pytest.PytestWarning, path, line or 0)
    about = {"when": "runtest", "nodeid": item.nodeid, "location": None}
    item.ihook.pytest_warning_recorded.call_historic(kwargs={"warning_message": message, **about})
