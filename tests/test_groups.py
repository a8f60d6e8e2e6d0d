"""Tests of one group run in one worker, with the installed pytest and pytest-xdist."""

from __future__ import annotations

import pytest

TEST = """
import os
import time
import pytest

@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("number", range(6))
def test_it(number):
    # Long enough for the other worker to start tests.
    time.sleep(0.05)
    with open(os.environ["PYTEST_XDIST_WORKER"], "w"):
        pass
"""


def test_group_runs_in_one_worker(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Other plugins would take most of the time.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile(test_a=TEST, test_b=TEST)

    result = pytester.runpytest_subprocess("-p", "xdist", "-n", "2", "--dist", "loadgroup")

    result.assert_outcomes(passed=12)
    assert len(list(pytester.path.glob("gw*"))) == 1
