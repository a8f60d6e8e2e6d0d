"""Running commands in this process, or in processes of their own where a test requires that."""

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

from tests import sample_images
from tests.support.waiting import until_sync

FAKE = ("--set", "engine.kind=fake")


@dataclass(frozen=True)
class Result:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The error message, which must be the only line on standard error."""
        (line,) = self.err.splitlines()
        assert line.startswith("samserve: error: ")
        return line.removeprefix("samserve: error: ")


Command = Callable[..., Result]


@pytest.fixture
def samserve(capsys: pytest.CaptureFixture[str]) -> Command:
    """A function that runs a command in this process."""

    def run(*arguments: object) -> Result:
        code = main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        return Result(code, output.out, output.err)

    return run


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A PNG of 64 by 48 pixels."""
    path = tmp_path / "image.png"
    path.write_bytes(sample_images.png(48, 64))
    return path


# `python -m samserve` that handles Ctrl-C: a background job inherits SIGINT as ignored.
RUN = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("samserve", run_name="__main__", alter_sys=True)
"""


def start(
    *arguments: str, stdout: Any = subprocess.PIPE, stderr: Any = subprocess.PIPE
) -> subprocess.Popen[str]:
    """Start `python -m samserve`."""
    return subprocess.Popen(
        [sys.executable, "-c", RUN, *arguments], stdout=stdout, stderr=stderr, text=True
    )


@dataclass(frozen=True)
class Served:
    """A server: its process, API address, the setting of its admin port, and log file."""

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
            event = json.loads(until_sync(serving))
            port = event["admin"].rpartition(":")[2]
            yield Served(process, event["address"], ("--set", f"server.admin_port={port}"), log)
        finally:
            process.kill()
            process.communicate()


def imported(commands: list[list[str]], modules: set[str]) -> tuple[set[str], str]:
    """Run commands in one process; return those of *modules* that it imported, and its output."""
    script = (
        "import json, sys; from samserve.cli.main import main\n"
        f"for command in {commands}: main(command)\n"
        f"print(); print(json.dumps([*({modules} & set(sys.modules))]))"
    )
    command = [sys.executable, "-c", script]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(json.loads(process.stdout.splitlines()[-1])), process.stdout
