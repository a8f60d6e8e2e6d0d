"""Detection of secrets in the output of tests.

Every secret of a test is registered here.  As a pytest plugin (loaded by `tests/conftest.py`), this
module searches for them in the output of a test, in the output that it read back from a capture or
from another process, in its failure text, and in the files that it left.  One leak fails the whole
run.  Workers of pytest-xdist search for the secrets of their own tests, and report the leaks to the
controller.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Shorter secrets would be found by chance.
_MIN_LENGTH = 12
_PEM_LINE = re.compile(r"^[A-Za-z0-9+/=]{12,}$")
_OUTPUTS = frozenset({".log", ".out", ".err", ".txt", ".json"})

_secrets: set[str] = set()
_secret_files: set[Path] = set()
# Source and text of output that was read back: secrets may be registered after they were printed.
_read_back: list[tuple[str, str]] = []
_leaks: list[str] = []
# The number of secrets of each worker.
_worker_counts: list[int] = []


def secret(text: str) -> str:
    """Register a secret, and return it; of PEM text every line, since a part reveals it."""
    lines = text.splitlines()
    if len(lines) > 1:
        _secrets.update(line for line in lines if _PEM_LINE.match(line))
    elif len(text) >= _MIN_LENGTH:
        _secrets.add(text)
    return text


def secret_file(path: Path) -> Path:
    """Exclude a file that must contain a secret, and return its path."""
    _secret_files.add(path)
    return path


def allowed_output(text: str) -> str:
    """Exclude output that was read back and must contain a secret, and return it."""
    _read_back[:] = [(source, content) for source, content in _read_back if text not in content]
    return text


def check(source: str, text: str) -> None:
    """Record a leak if *text* contains a secret; only its first characters are reported."""
    _leaks.extend(f"{source}: {known[:4]}..." for known in _secrets if known in text)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Check all output of a test, also of a passing one."""
    test = f"{report.nodeid} ({report.when})"
    for title, content in report.sections:
        check(f"{test}, {title}", content)
    if report.longrepr is not None:
        check(f"{test}, failure", str(report.longrepr))
    for source, content in _read_back:
        check(f"{test}, {source}", content)
    _read_back.clear()


def _watch(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, *, is_async: bool = False
) -> None:
    """Record the result of a method: a pair of outputs."""
    original = getattr(owner, name)
    source = f"the result of {owner.__name__}.{name}"

    def record(result: Any) -> Any:
        for stream in result:
            if stream:
                text = stream if isinstance(stream, str) else stream.decode(errors="replace")
                _read_back.append((source, text))
        return result

    async def call_async(self: Any, *args: Any, **kwargs: Any) -> Any:
        return record(await original(self, *args, **kwargs))

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return record(original(self, *args, **kwargs))

    monkeypatch.setattr(owner, name, call_async if is_async else call)


@pytest.fixture(autouse=True)
def _watch_read_back_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check the output that a test reads from a capture or a process; pytest does not report it."""
    _watch(monkeypatch, pytest.CaptureFixture, "readouterr")
    _watch(monkeypatch, subprocess.Popen, "communicate")
    _watch(monkeypatch, asyncio.subprocess.Process, "communicate", is_async=True)


@pytest.fixture(autouse=True, scope="session")
def _watch_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Check the logs that tests have left on the disk."""
    yield
    for path in tmp_path_factory.getbasetemp().rglob("*"):
        is_output = path.suffix in _OUTPUTS and path.is_file()
        if is_output and path not in _secret_files:
            check(str(path), path.read_text(errors="replace"))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the whole run for a leak; in a worker, report the leaks to the controller."""
    if hasattr(session.config, "workeroutput"):
        # xdist sends it after this hook.
        session.config.workeroutput["secret_leaks"] = [len(_secrets), _leaks]
    if _leaks and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add the leaks of a worker; a crashed worker reports none, and fails the run anyway."""
    count, leaks = getattr(node, "workeroutput", {}).get("secret_leaks", (0, []))
    _worker_counts.append(count)
    _leaks.extend(leaks)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Write the numbers of secrets and leaks, and the source of each leak."""
    count = len(_secrets) + sum(_worker_counts)
    terminalreporter.write_line(f"secrets: {count} used, {len(_leaks)} found in logs and outputs")
    for leak in _leaks:
        terminalreporter.write_line(f"LEAK {leak}", red=True)
