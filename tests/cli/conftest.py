"""Commands run in this process, and true processes where only those will do."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from samserve.cli.main import main

from tests import pictures
from tests.support.waiting import until_sync

FAKE = ("--set", "engine.kind=fake")


@dataclass(frozen=True)
class Ended:
    """How a command ended and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """What it complained of, which is all of standard error, and one line."""
        (line,) = self.err.splitlines()
        assert line.startswith("samserve: error: ")
        return line.removeprefix("samserve: error: ")


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


def start(*arguments: str, stderr: Any = subprocess.PIPE) -> subprocess.Popen[str]:
    """Begin `python -m samserve`."""
    return subprocess.Popen(
        [sys.executable, "-c", RUN, *arguments], stdout=subprocess.PIPE, stderr=stderr, text=True
    )


@dataclass(frozen=True)
class Served:
    """A server: its process, API, settings that tell the port of its admin listener, and log."""

    process: subprocess.Popen[str]
    address: str
    admin: tuple[str, str]
    log: Path


@contextmanager
def server_process(*arguments: str) -> Iterator[Served]:
    """Run `samserve serve` with the fake engine on free ports."""
    free = ("--port", "0", "--admin-port", "0", "--set", "log.format=json")
    with tempfile.NamedTemporaryFile("w", suffix=".log") as file:
        log = Path(file.name)
        process = start("serve", *free, *FAKE, *arguments, stderr=file)

        def serving() -> str:
            assert process.poll() is None, log.read_text()
            return next((line for line in log.read_text().splitlines() if '"serving"' in line), "")

        try:
            told = json.loads(until_sync(serving))
            port = told["admin"].rpartition(":")[2]
            yield Served(process, told["address"], ("--set", f"server.admin_port={port}"), log)
        finally:
            process.kill()
            process.communicate()


def imported(commands: list[list[str]], modules: set[str]) -> tuple[set[str], str]:
    """Run commands in one process; return which of *modules* it has then, and what it wrote."""
    script = (
        "import json, sys; from samserve.cli.main import main\n"
        f"for command in {commands}: main(command)\n"
        f"print(); print(json.dumps([*({modules} & set(sys.modules))]))"
    )
    command = [sys.executable, "-c", script]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(json.loads(ended.stdout.splitlines()[-1])), ended.stdout
