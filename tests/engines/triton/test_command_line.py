"""The command line with the Triton engine, and its metrics."""

from __future__ import annotations

import asyncio
import signal
import urllib.request

import pytest
from samserve.app import running

from tests.cli.conftest import Command, samserve, start
from tests.engines.triton.services import settings_for
from tests.triton import servers

__all__ = ["samserve"]

KIND = ("--set", "engine.kind=triton")
UNREACHABLE = ("--set", "triton.url=127.0.0.1:1")


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM]
)
def test_serve_can_be_stopped_while_it_waits_for_triton(number: signal.Signals) -> None:
    process = start("serve", "--port", "0", "--admin-port", "0", *KIND, *UNREACHABLE)
    assert process.stderr is not None
    try:
        line = ""
        while "waiting for Triton" not in line:
            line = process.stderr.readline()
            assert line, "the process ended unexpectedly"
        process.send_signal(number)
        _, rest = process.communicate(timeout=60)
    finally:
        process.kill()

    assert process.returncode == 0
    assert "stopped" in rest
    assert "Traceback" not in rest


def test_serve_reports_in_one_line_that_triton_did_not_become_ready(samserve: Command) -> None:
    ended = samserve(
        "serve", "--port", "0", "--admin-port", "0", *KIND, *UNREACHABLE,
        "--set", "triton.startup_timeout_s=0.5",
    )  # fmt: skip

    assert ended.code == 1
    assert ended.err.splitlines()[-1] == (
        "samserve: error: Triton cannot be reached; "
        "given up after 0.5 s, increase triton.startup_timeout_s for slow starts"
    )
    assert "Traceback" not in ended.err


def test_doctor_runs_an_inference_on_triton_and_reports_the_transport(samserve: Command) -> None:
    url = servers.drawing().grpc_address
    ended = samserve("doctor", *KIND, "--set", f"triton.url={url}")

    assert "model repository: not used by the triton engine" in ended.out
    assert "inference: fake: Embed and Predict in" in ended.out
    assert "shared memory" in ended.out


@pytest.mark.parametrize(
    ("memory", "expected"), [("required", "shared_memory"), ("off", "message")]
)
async def test_metrics_report_the_transport_in_use(memory: str, expected: str) -> None:
    url = servers.drawing().grpc_address
    async with running(settings_for(url, shared_memory=memory)) as service:

        def scrape() -> str:
            with urllib.request.urlopen(f"http://{service.admin_address}/metrics") as response:
                return str(response.read().decode())

        text = await asyncio.to_thread(scrape)

    for transport in ("in_process", "shared_memory", "message"):
        value = float(transport == expected)
        assert f'samserve_engine_transport{{transport="{transport}"}} {value}' in text
    pool = 'samserve_triton_shared_memory_pool_bytes{state="total"}'
    (line,) = [line for line in text.splitlines() if line.startswith(pool)]
    assert (float(line.split()[-1]) > 0) == (memory == "required")
