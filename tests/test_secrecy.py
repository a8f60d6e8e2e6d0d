"""The scan for secrets notices them, wherever they come out."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

QUIET = """
    from tests.secrecy import secret, secret_file
    def test_quiet(tmp_path):
        secret("correct-horse-battery")
        secret_file(tmp_path / "key.txt").write_text("correct-horse-battery")
        print("nothing to see")
"""
LEAKS = {
    "output": """
    from tests.secrecy import secret
    def test_leak():
        print("it is", secret("correct-horse-battery"))
    """,
    "log": """
    import logging
    from tests.secrecy import secret
    def test_leak():
        logging.getLogger("x").error("it is %s", secret("correct-horse-battery"))
    """,
    "captured by the test": """
    from tests.secrecy import secret
    def test_leak(capsys):
        print("it is", secret("correct-horse-battery"))
        capsys.readouterr()
    """,
    "failure": """
    from tests.secrecy import secret
    def test_leak():
        raise ValueError(secret("correct-horse-battery"))
    """,
    "subprocess": """
    import subprocess
    from tests.secrecy import secret
    def test_leak():
        subprocess.run(["echo", secret("correct-horse-battery")])
    """,
    "subprocess whose output is read": """
    import subprocess
    from tests.secrecy import secret
    def test_leak():
        subprocess.run(["echo", secret("correct-horse-battery")], capture_output=True)
    """,
    "asyncio subprocess": """
    import asyncio, subprocess
    from tests.secrecy import secret
    async def leak():
        process = await asyncio.create_subprocess_exec(
            "echo", secret("correct-horse-battery"), stderr=subprocess.PIPE, stdout=subprocess.PIPE
        )
        await process.communicate()
    def test_leak():
        asyncio.run(leak())
    """,
    "file": """
    from tests.secrecy import secret
    def test_leak(tmp_path):
        (tmp_path / "server.log").write_text("it is " + secret("correct-horse-battery"))
    """,
    "one line of a private key": """
    from tests.secrecy import secret
    def test_leak():
        secret("-----BEGIN PRIVATE KEY-----\\nMIGHAgEAMBMGByqGSM49\\nAgEGCCqGSM49AwEHBG0w\\n")
        print("AgEGCCqGSM49AwEHBG0w")
    """,
}


def run(pytester: pytest.Pytester, test: str, *options: str) -> pytest.RunResult:
    pytester.makepyfile(test)
    return pytester.runpytest_subprocess("-p", "tests.secrecy", "--basetemp", "scanned", *options)


@pytest.fixture(autouse=True)
def _finds_the_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def test_a_suite_that_keeps_its_secrets_passes(pytester: pytest.Pytester) -> None:
    result = run(pytester, QUIET)

    result.assert_outcomes(passed=1)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["secrets: 1 used, 0 found*"])


# Each takes a run of pytest.
@pytest.mark.parametrize(
    "way",
    [
        pytest.param(way, marks=[pytest.mark.slow] * (way not in ("output", "subprocess", "file")))
        for way in LEAKS
    ],
)
def test_a_leak_fails_the_run(pytester: pytest.Pytester, way: str) -> None:
    result = run(pytester, LEAKS[way])

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert any(line.startswith("LEAK ") for line in result.outlines)
    # It is told by its first characters only, except where pytest itself has printed it.
    assert not any("battery" in line for line in result.outlines if line.startswith("LEAK"))


@pytest.mark.parametrize("way", ["output", "file"])
def test_a_leak_in_a_worker_fails_the_run(pytester: pytest.Pytester, way: str) -> None:
    result = run(pytester, LEAKS[way], "-n", "2")

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert any(line.startswith("LEAK ") for line in result.outlines)
    result.stdout.fnmatch_lines(["secrets: 1 used, *"])
