"""A test is rerun if tritonserver has crashed during the test, and only then."""

from __future__ import annotations

import pytest

TESTS = """
import os, signal
from pathlib import Path
import pytest
from harness.triton.server import TritonServer

HERE = Path(__file__).parent

def attempt(name):
    with (HERE / name).open("a") as file:
        file.write("x")
    return (HERE / name).stat().st_size

@pytest.fixture(scope="module")
def shared():
    (HERE / "models").mkdir(exist_ok=True)
    with TritonServer(HERE / "models", log=HERE / "log") as server:
        yield server

@pytest.fixture
def triton(shared):
    return shared.ensure_running()

def end(server, number):
    os.kill(server.pid, number)
    server.wait()

def test_crashes_once(triton):
    assert triton.alive
    if attempt("once") == 1:
        end(triton, signal.SIGSEGV)
        raise AssertionError("crashed")

def test_crashes_always(triton):
    attempt("always")
    end(triton, signal.SIGSEGV)
    raise AssertionError("crashed")

def test_fails_without_a_crash(triton):
    attempt("fails")
    raise AssertionError("wrong")

def test_kills_triton(triton):
    attempt("kills")
    end(triton, signal.SIGKILL)
    raise AssertionError("killed")
"""

ATTEMPTS = {"once": 2, "always": 3, "fails": 1, "kills": 1}


def test_only_a_crash_of_triton_causes_a_rerun(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("from tests.triton.crashes import pytest_runtest_protocol")
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function")
    pytester.makepyfile(TESTS)

    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:xdist")

    result.assert_outcomes(passed=1, failed=3, warnings=3)
    sizes = {name: (pytester.path / name).stat().st_size for name in ATTEMPTS}
    assert sizes == ATTEMPTS
    result.stdout.fnmatch_lines(
        [
            "*::test_crashes_once",
            "*tritonserver crashed in attempt 1; the test runs again",
        ]
    )
