"""Commands run in this process, and true processes where only those will do."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from samserve.cli.main import main

from tests import pictures

FAKE = ("--set", "engine.kind=fake")


@dataclass(frozen=True)
class Ended:
    """How a command ended and what it wrote."""

    code: int
    out: str
    err: str


Command = Callable[..., Ended]


@pytest.fixture
def samserve(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command in this process."""

    def run(*arguments: object) -> Ended:
        code = main([str(argument) for argument in arguments])
        written = capsys.readouterr()
        return Ended(code, written.out, written.err)

    return run


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A PNG of 64 by 48 pixels."""
    path = tmp_path / "picture.png"
    path.write_bytes(pictures.png(48, 64))
    return path


# `python -m samserve`, with Ctrl-C as at a terminal: a background job inherits it ignored.
RUN = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("samserve", run_name="__main__", alter_sys=True)
"""


def start(*arguments: str) -> subprocess.Popen[str]:
    """Begin `python -m samserve`."""
    return subprocess.Popen(
        [sys.executable, "-c", RUN, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextmanager
def server_process(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `samserve serve` with the fake engine on free ports; yields it and its address."""
    free = ("--port", "0", "--admin-port", "0", "--set", "log.format=json")
    process = start("serve", *free, *FAKE, *arguments)
    assert process.stderr is not None
    try:
        yield process, _address(process)
    finally:
        process.kill()
        process.communicate()


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    for line in process.stderr:
        if '"serving"' in line:
            return str(json.loads(line)["address"])
    raise AssertionError("the server ended before it served")
