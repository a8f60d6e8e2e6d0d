"""Reruns a failed test if tritonserver itself has crashed during the test, and only then.

24.10 sometimes crashes when requests are cancelled (docs/triton.md), which is unrelated to the code
under test.  A test that fails for any other reason has failed, even if it has killed tritonserver.
A pytest plugin, which also works in a worker of pytest-xdist.
"""

from __future__ import annotations

import time
import warnings

import pytest
from _pytest.runner import runtestprotocol

from harness.triton.server import crash_logs

ATTEMPTS = 3
# Connections break shortly before the exit status of the process is available.
_TIMEOUT_S, _POLL_S = 1.0, 0.05


def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    """Run the test as pytest does, and again after a crash; only the last attempt is reported."""
    identity = {"nodeid": item.nodeid, "location": item.location}
    item.ihook.pytest_runtest_logstart(**identity)
    for attempt in range(1, ATTEMPTS + 1):
        before = len(crash_logs())
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
        failed = any(report.failed for report in reports)
        if not failed or attempt == ATTEMPTS or not _crashed_since(before):
            break
        _warn(item, f"tritonserver crashed in attempt {attempt}; the test runs again")
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(**identity)
    return True


def _crashed_since(before: int) -> bool:
    deadline = time.monotonic() + _TIMEOUT_S
    while len(crash_logs()) == before and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return len(crash_logs()) > before


def _warn(item: pytest.Item, text: str) -> None:
    """Add a line to the warnings summary, which a worker sends to the controller."""
    path, line, _ = item.location
    warning = pytest.PytestWarning(text)
    message = warnings.WarningMessage(warning, pytest.PytestWarning, path, line or 0)
    source = {"when": "runtest", "nodeid": item.nodeid, "location": None}
    item.ihook.pytest_warning_recorded.call_historic(kwargs={"warning_message": message, **source})
