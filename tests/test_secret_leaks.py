"""The detection of secrets finds leaks in every kind of output."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

HEAD = """
import asyncio, logging, subprocess
from subprocess import PIPE
from tests.secret_leaks import secret, secret_file
"""
QUIET = f"""{HEAD}
def test_quiet(tmp_path):
    secret("correct-horse-battery")
    secret_file(tmp_path / "key.txt").write_text("correct-horse-battery")
    print("nothing to see")
"""
OUTPUT = f"""{HEAD}
def test_leak():
    print("it is", secret("correct-horse-battery"))
"""
FILE = f"""{HEAD}
def test_leak(tmp_path):
    (tmp_path / "server.log").write_text("it is " + secret("correct-horse-battery"))
"""
# Each test has its own secret, which is reported by its first four characters.
ALL_OUTPUTS = f"""{HEAD}
def test_output():
    print("it is", secret("out1-horse-battery"))

def test_log():
    logging.getLogger("x").error("it is %s", secret("log2-horse-battery"))

def test_captured(capsys):
    print("it is", secret("cap3-horse-battery"))
    capsys.readouterr()

def test_failure():
    raise ValueError(secret("".join(["bad4", "-horse-battery"])))

def test_subprocess():
    subprocess.run(["echo", secret("sub5-horse-battery")])

def test_subprocess_whose_output_is_read():
    subprocess.run(["echo", secret("run6-horse-battery")], capture_output=True)

async def leak():
    words = ("echo", secret("aio7-horse-battery"))
    process = await asyncio.create_subprocess_exec(*words, stderr=PIPE, stdout=PIPE)
    await process.communicate()

def test_asyncio_subprocess():
    asyncio.run(leak())

def test_file(tmp_path):
    (tmp_path / "server.log").write_text("it is " + secret("fil8-horse-battery"))

def test_one_line_of_a_private_key():
    secret("-----BEGIN PRIVATE KEY-----\\nMIGHAgEAMBMGByqGSM49\\nAgEGCCqGSM49AwEHBG0w\\n")
    print("AgEGCCqGSM49AwEHBG0w")
"""
REPORTED = {"out1", "log2", "cap3", "bad4", "sub5", "run6", "aio7", "fil8", "AgEG"}


def run(pytester: pytest.Pytester, test: str, *options: str) -> pytest.RunResult:
    pytester.makepyfile(test)
    return pytester.runpytest_subprocess(
        "-p", "tests.secret_leaks", "--basetemp", "scanned", *options
    )


@pytest.fixture(autouse=True)
def _one_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    # Other plugins would take most of the time.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


def test_run_without_leaks_passes(pytester: pytest.Pytester) -> None:
    result = run(pytester, QUIET)

    result.assert_outcomes(passed=1)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["secrets: 1 used, 0 found*"])


@pytest.mark.parametrize("test", [OUTPUT, FILE], ids=["output", "file"])
@pytest.mark.parametrize("options", [(), ("-p", "xdist", "-n", "2")], ids=["alone", "in workers"])
def test_leak_fails_the_run(pytester: pytest.Pytester, test: str, options: tuple[str, ...]) -> None:
    result = run(pytester, test, *options)

    result.assert_outcomes(passed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["secrets: 1 used, *", "LEAK *: corr..."])


def test_leaks_in_every_kind_of_output_are_found(pytester: pytest.Pytester) -> None:
    result = run(pytester, ALL_OUTPUTS)

    leaks = [line for line in result.outlines if line.startswith("LEAK ")]
    assert {re.sub(r".*: (.{4})\.\.\.", r"\1", line) for line in leaks} == REPORTED
    # The first characters only.
    assert not any("battery" in line for line in leaks)
