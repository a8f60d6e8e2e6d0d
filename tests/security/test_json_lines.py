"""Standard error as JSON lines, from all writers, also at startup errors and crashes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from samserve.telemetry import log_writer

from harness.gateway import GatewayServer
from tests.conftest import UNLIMITED
from tests.security import http2
from tests.security.credentials import write_pem
from tests.support.waiting import until, until_sync


def parsed(text: str) -> list[dict[str, Any]]:
    """Parse the lines of a log, and check the fields that every line has."""
    lines = [json.loads(line) for line in text.splitlines()]
    for line in lines:
        assert {"event", "level", "timestamp"} <= line.keys(), line
    return lines


def run(body: str, *, ends_with: int = 0) -> list[dict[str, Any]]:
    """Run *body* in a process with JSON on standard error; return the lines of standard error."""
    program = """
import logging, os, sys, threading, warnings
from samserve.telemetry import logs, standard_error
from samserve.settings import LogSettings
standard_error.redirect_as_json()
logs.configure(LogSettings(format="json"))
""" + textwrap.dedent(body)
    done = subprocess.run(
        [sys.executable, "-c", program], stderr=subprocess.PIPE, check=False, text=True
    )
    assert done.returncode == ends_with, done.stderr
    return parsed(done.stderr)


async def test_failed_tls_handshakes_are_logged_as_json(
    tmp_path: Path, authority: trustme.CA
) -> None:
    pem = write_pem(tmp_path / "tls", authority.issue_cert("localhost"))
    log = tmp_path / "log"
    settings = {"engine.kind": "onnx", "log.format": "json"}
    tls = {"tls.cert_file": pem.cert, "tls.key_file": pem.key}
    with GatewayServer({**settings, **tls}, log=log) as gateway:
        host, port = gateway.target.rsplit(":", 1)
        for first in (http2.hello(), b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x05hello"):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(first)
            with contextlib.suppress(ConnectionError):
                await reader.read()
            writer.close()
        credentials = grpc.ssl_channel_credentials(trustme.CA().cert_pem.bytes())
        channel = grpc.aio.secure_channel(gateway.target, credentials, options=UNLIMITED)
        async with channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await channel.unary_unary("/a.B/C")(b"", timeout=5)
        # gRPC's core has logged the failed handshakes.
        await until(lambda: "ssl_transport_security" in log.read_text())

    lines = parsed(log.read_text())
    library_lines = [line for line in lines if line.get("logger") == "stderr"]
    assert {line["level"] for line in library_lines} <= {"error", "warning", "info"}
    assert [line["event"] for line in lines if line.get("logger") != "stderr"][-1] == "stopped"


def test_warnings_and_uncaught_exceptions_are_one_object_each() -> None:
    lines = run(
        """
        import structlog
        structlog.get_logger("samserve").info("own", text="two\\nlines")
        warnings.warn("a warning of a library", DeprecationWarning, stacklevel=1)
        logging.getLogger("library").error("an error of a library")
        thread = threading.Thread(target=lambda: 1 / 0, name="worker")
        thread.start()
        thread.join()
        class Leaving:
            def __del__(self):
                raise ValueError("too late")
        Leaving()
        raise RuntimeError("not caught")
        """,
        ends_with=1,
    )

    events = [(line["event"], line["level"]) for line in lines]
    assert events[0] == ("own", "info")
    assert "DeprecationWarning: a warning of a library" in events[1][0]
    assert events[2] == ("an error of a library", "error")
    assert events[3] == ("uncaught exception in a thread", "error")
    assert lines[3]["thread"] == "worker"
    assert "ZeroDivisionError" in lines[3]["exception"]
    assert events[4][1] == "error"
    assert "too late" in lines[4]["exception"]
    assert events[5] == ("uncaught exception", "critical")
    assert "not caught" in lines[5]["exception"]
    assert len(lines) == 6


def test_every_line_of_a_c_library_is_an_object() -> None:
    lines = run(
        r"""
        import subprocess
        os.write(2, b"E1129 16:41:38.322090    8417 ssl_transport.cc:1] Handshake failed\n")
        os.write(2, b'\x1b[0;93m2026-11-29 16:41:38.1 [W:onnxruntime:, a.cc:1 run] odd\x1b[m\n')
        os.write(2, b'in two ')
        os.write(2, b'parts "quoted" \xff\n\n{"not": json}\n')
        subprocess.run([sys.executable, "-c", "import os; os.write(2, b'of a child')"])
        os.write(2, b"\nwithout an end")
        """
    )

    assert [(line["event"], line["level"]) for line in lines] == [
        ("E1129 16:41:38.322090    8417 ssl_transport.cc:1] Handshake failed", "error"),
        ("2026-11-29 16:41:38.1 [W:onnxruntime:, a.cc:1 run] odd", "warning"),
        ('in two parts "quoted" \\xff', "warning"),
        ('{"not": json}', "warning"),
        ("of a child", "warning"),
        ("without an end", "warning"),
    ]


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT], ids=lambda each: each.name)
def test_a_crash_loses_no_line(number: signal.Signals) -> None:
    lines = run(
        f"""
        for number in range(2000):
            os.write(2, b"line %d\\n" % number)
        os.kill(os.getpid(), {number.value})
        """,
        ends_with=-number.value,
    )

    events = [line["event"] for line in lines]
    assert events[:2000] == [f"line {number}" for number in range(2000)]
    assert any("Fatal Python error" in event for event in events[2000:])
    assert any('File "<string>"' in event for event in events[2000:])


@pytest.mark.slow
def test_a_library_that_writes_while_it_holds_the_gil_does_not_deadlock() -> None:
    lines = run(
        """
        import ctypes
        # Unlike CDLL, it does not release the GIL.
        write = ctypes.PyDLL(None).write
        for number in range(100):
            data = b"x" * 9999 + b"\\n"
            write(2, data, len(data))
        """
    )

    assert [len(line["event"]) for line in lines] == [9999] * 100


def test_the_log_writer_ends_after_the_server() -> None:
    program = """
import os, sys, time
from samserve.telemetry import standard_error
standard_error.redirect_as_json()
print(os.getpid(), flush=True)
sys.stdin.read()
os.write(2, b"the last line\\n")
"""
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        assert server.stderr is not None
        pid = int(server.stdout.readline())
        (writer,) = until_sync(lambda: children(pid))
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(writer, number)
        server.stdin.close()
        text = server.stderr.read().decode()
    until_sync(lambda: not Path(f"/proc/{writer}").exists())

    assert [line["event"] for line in parsed(text)] == ["the last line"]


def test_lines_after_a_killed_log_writer_are_not_lost() -> None:
    lines = run(
        """
        import signal, time
        task = f"/proc/{os.getpid()}/task/{os.getpid()}/children"
        pipe = os.stat(2).st_ino
        os.kill(int(open(task).read()), signal.SIGKILL)
        while os.stat(2).st_ino == pipe:
            time.sleep(0.01)
        logging.getLogger("library").error("after it")
        """
    )

    events = [line["event"] for line in lines]
    assert "after it" in events
    assert any("log writer ended" in event for event in events)


def test_the_log_writer_ignores_a_closed_flush_descriptor() -> None:
    flushed, flushing = os.pipe()
    os.close(flushed)
    done = subprocess.run(
        [sys.executable, "-I", "-S", log_writer.__file__, str(flushing)],
        input=b"a line\n" + log_writer.FLUSH_MARKER + b"\nanother\n",
        capture_output=True,
        check=False,
        pass_fds=[flushing],
    )
    os.close(flushing)

    assert (done.returncode, done.stderr) == (0, b"")
    assert [line["event"] for line in parsed(done.stdout.decode())] == ["a line", "another"]


def test_a_closed_standard_error_is_not_an_error() -> None:
    program = """
import os
from samserve.telemetry import logs, standard_error
from samserve.cli import terminal
from samserve.settings import LogSettings
terminal.escape_unencodable()
standard_error.redirect_as_json()
logs.configure(LogSettings(format="json"))
os.write(2, b"to nowhere\\n")
print("it works")
"""
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, program],
        stdout=subprocess.PIPE,
        check=False,
        text=True,
    )

    assert (done.returncode, done.stdout) == (0, "it works\n")


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_errors_at_startup_are_json() -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "samserve", "serve"),
            *("--set=log.format=json", "--set=auth.api_keys_file=/nowhere/keys.toml"),
            # Others may use the default ports.
            *("--port=0", "--admin-port=0"),
        ],
        stderr=subprocess.PIPE,
        check=False,
        text=True,
    )

    assert done.returncode == 1
    (line,) = parsed(done.stderr)
    assert line["level"] == "error"
    assert "/nowhere/keys.toml" in line["event"]


def test_json_lines_are_copied_unchanged() -> None:
    line = b'{"event": "rpc", "nested": {"list": [1, 2]}}'

    assert log_writer.json_line(line) == line + b"\n"
    assert json.loads(log_writer.json_line(line + b" and more"))["event"].endswith("and more")
