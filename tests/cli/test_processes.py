"""Commands in processes of their own: signals, a server, and imports."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import FAKE, Command, imported, server_process, start


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_handles_commands_and_stops_gracefully_on_a_signal(
    samserve: Command, image: Path, number: signal.Signals
) -> None:
    with server_process() as served:
        address = served.address
        first = samserve("embed", image, "--server", address)
        second = samserve("predict", image, "--point", "9,9", "--server", address)
        third = samserve("embed", image, "--server", address)
        doctor = samserve("doctor", "--server", address)
        served.process.send_signal(number)
        code = served.process.wait()
        log = served.log.read_text()

    assert code == 0
    assert "stopped" in log
    assert "Traceback" not in log
    assert (first.code, second.code, third.code, doctor.code) == (0, 0, 0, 0)
    assert "cached: no" in first.out
    assert "cached: yes" in third.out
    assert f"ok       server: {address} is ready and serves fake" in doctor.out
    # The output is the same with a server in the process of the command.
    assert samserve("predict", image, "--point", "9,9", *FAKE).out == second.out


@pytest.mark.parametrize("command", [("embed",), ("cache", "warm")])
def test_an_interrupt_is_reported_in_one_line(image: Path, command: tuple[str, ...]) -> None:
    given = image if command == ("embed",) else image.parent
    # Accepts connections and never responds: the command waits until it is interrupted.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        process = start(*command, str(given), "--server", f"127.0.0.1:{silent.getsockname()[1]}")
        connection, _ = silent.accept()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
        connection.close()

    assert (process.returncode, out, err) == (130, "", "samserve: error: interrupted\n")


def test_an_interrupt_during_imports_is_reported_in_one_line() -> None:
    # Sends SIGINT while typer is imported.
    code = """
import os, signal, sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupting())
from samserve.cli.main import main
sys.exit(main(["models", "--server", "127.0.0.1:1"]))
"""
    process = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True
    )

    # Python itself may exit by the signal, which shells report as 130 too.
    assert process.returncode in (130, -signal.SIGINT)
    assert process.stderr == "samserve: error: interrupted\n"


def test_a_failed_connection_is_reported_in_one_line(tmp_path: Path) -> None:
    # gRPC's core would log lines of its own about this.
    invalid = tmp_path / "ca.crt"
    invalid.write_text("-----BEGIN CERTIFICATE-----\nno certificate\n-----END CERTIFICATE-----\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        process = start("models", "--server", address, "--ca", str(invalid))
        _, err = process.communicate()

    assert process.returncode == 1
    assert err.startswith("samserve: error: the server is unreachable: ")
    assert "cannot be read: pass PEM files" in err
    assert err.count("\n") == 1


def test_a_closed_pipe_causes_no_traceback(image: Path) -> None:
    process = start("automask", str(image), "--points-per-side", "4", *FAKE)
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate()

    assert process.returncode == 1
    assert "Traceback" not in err
    assert "Exception" not in err


def test_help_imports_no_heavy_packages() -> None:
    heavy = {"numpy", "grpc", "cv2", "onnxruntime", "PIL", "samserve.app"}

    assert imported([["predict", "--help"]], heavy)[0] == set()
