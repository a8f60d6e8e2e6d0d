"""True processes: signals, a server in another process, and what is imported."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import FAKE, Command, server_process, start


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_answers_commands_and_ends_gracefully_when_told_to(
    samserve: Command, image: Path, number: signal.Signals
) -> None:
    with server_process() as (process, address):
        first = samserve("embed", image, "--server", address)
        second = samserve("predict", image, "--point", "9,9", "--server", address)
        third = samserve("embed", image, "--server", address)
        doctor = samserve("doctor", "--server", address)
        process.send_signal(number)
        _, rest = process.communicate()

    assert process.returncode == 0
    assert "stopped" in rest
    assert "Traceback" not in rest
    assert (first.code, second.code, third.code, doctor.code) == (0, 0, 0, 0)
    assert "cached: no" in first.out
    assert "cached: yes" in third.out
    assert f"ok       server: {address} is ready and serves fake" in doctor.out
    # The same as without a server.
    assert samserve("predict", image, "--point", "9,9", *FAKE).out == second.out


def test_an_interrupt_ends_any_command_in_one_line(image: Path) -> None:
    # Takes connections and never answers: the command waits until it is interrupted.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        process = start("embed", str(image), "--server", f"127.0.0.1:{silent.getsockname()[1]}")
        connection, _ = silent.accept()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
        connection.close()

    assert (process.returncode, err) == (130, "samserve: error: interrupted\n")


def test_a_reader_that_leaves_is_no_traceback(image: Path) -> None:
    process = start("automask", str(image), "--points-per-side", "4", *FAKE)
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate()

    assert process.returncode == 1
    assert "Traceback" not in err
    assert "Exception" not in err


def test_help_imports_nothing_heavy() -> None:
    heavy = "{'numpy', 'grpc', 'cv2', 'onnxruntime', 'PIL', 'samserve.app'}"
    script = (
        "import sys; from samserve.cli.main import main; main(['predict', '--help']); "
        f"sys.exit(str({heavy} & set(sys.modules)) if {heavy} & set(sys.modules) else 0)"
    )

    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )

    assert (ended.returncode, ended.stderr) == (0, "")
