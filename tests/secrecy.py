"""Every secret that a test makes is registered here, and must turn up in no output of the suite.

As a pytest plugin (`tests/conftest.py` loads it) this looks for them in everything that a test
wrote, in what it read back from a capture or from another process, in its failure text, and in the
files it left behind.  One find fails the whole run.  Workers of pytest-xdist, each a process of its
own that knows the secrets of its own tests, look themselves and hand what they found to the
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

# A part of a secret gives it away too; shorter parts would be found by chance.
_SHORTEST = 12
_PEM_LINE = re.compile(r"^[A-Za-z0-9+/=]{12,}$")
_OUTPUTS = frozenset({".log", ".out", ".err", ".txt", ".json"})

_secrets: set[str] = set()
_may_hold: set[Path] = set()
# What was read back, by place: secrets may be registered after they were printed.
_read_back: list[tuple[str, str]] = []
_leaks: list[str] = []
# How many secrets each worker knew.
_used_by_workers: list[int] = []


def secret(text: str) -> str:
    """Register a secret, and give it back; of PEM text the lines, since a part gives it away."""
    lines = text.splitlines()
    if len(lines) > 1:
        _secrets.update(line for line in lines if _PEM_LINE.match(line))
    elif len(text) >= _SHORTEST:
        _secrets.add(text)
    return text


def secret_file(path: Path) -> Path:
    """Say that a file is the rightful place of a secret, and give its path back."""
    _may_hold.add(path)
    return path


def rightful(text: str) -> str:
    """Say that output which was read back is a secret's rightful place, and give it back."""
    _read_back[:] = [(place, seen) for place, seen in _read_back if text not in seen]
    return text


def check(place: str, text: str) -> None:
    """Note a leak if there is a secret in *text*; told by its first characters only."""
    _leaks.extend(f"{place}: {known[:4]}..." for known in _secrets if known in text)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Look into everything that is reported of a test, also of one that passes."""
    place = f"{report.nodeid} ({report.when})"
    for title, content in report.sections:
        check(f"{place}, {title}", content)
    if report.longrepr is not None:
        check(f"{place}, failure", str(report.longrepr))
    for where, content in _read_back:
        check(f"{place}, {where}", content)
    _read_back.clear()


def _watch(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, *, waits: bool = False) -> None:
    """Note what a method returns: a pair of outputs."""
    original = getattr(owner, name)
    place = f"what {owner.__name__}.{name} gave"

    def note(result: Any) -> Any:
        for stream in result:
            if stream:
                text = stream if isinstance(stream, str) else stream.decode(errors="replace")
                _read_back.append((place, text))
        return result

    async def later(self: Any, *args: Any, **kwargs: Any) -> Any:
        return note(await original(self, *args, **kwargs))

    def now(self: Any, *args: Any, **kwargs: Any) -> Any:
        return note(original(self, *args, **kwargs))

    monkeypatch.setattr(owner, name, later if waits else now)


@pytest.fixture(autouse=True)
def _watch_what_is_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look into what a test takes out of a capture or a process: it is not reported any more."""
    _watch(monkeypatch, pytest.CaptureFixture, "readouterr")
    _watch(monkeypatch, subprocess.Popen, "communicate")
    _watch(monkeypatch, asyncio.subprocess.Process, "communicate", waits=True)


@pytest.fixture(autouse=True, scope="session")
def _watch_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Look into the logs that tests have left on the disk."""
    yield
    for path in tmp_path_factory.getbasetemp().rglob("*"):
        written = path.suffix in _OUTPUTS and path.is_file()
        if written and path not in _may_hold:
            check(str(path), path.read_text(errors="replace"))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the whole run for a leak; in a worker, hand what was found to the controller."""
    if hasattr(session.config, "workeroutput"):
        # xdist sends it after this hook.
        session.config.workeroutput["secrecy"] = [len(_secrets), _leaks]
    if _leaks and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what a worker found; one that died has told nothing and fails the run anyway."""
    used, leaks = getattr(node, "workeroutput", {}).get("secrecy", (0, []))
    _used_by_workers.append(used)
    _leaks.extend(leaks)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say what was looked for, and where something was found."""
    used = len(_secrets) + sum(_used_by_workers)
    terminalreporter.write_line(f"secrets: {used} used, {len(_leaks)} found in logs and outputs")
    for leak in _leaks:
        terminalreporter.write_line(f"LEAK {leak}", red=True)
