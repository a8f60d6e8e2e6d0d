"""The command line with the engine set to Triton, and what metrics say of it."""

from __future__ import annotations

import asyncio
import signal
import urllib.request

import pytest
from samserve.app import running

from tests.cli.conftest import Command, samserve, start
from tests.engines.triton.opening import settings_for
from tests.triton import servers

__all__ = ["samserve"]

KIND = ("--set", "engine.kind=triton")
NOBODY_THERE = ("--set", "triton.url=127.0.0.1:1")


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM]
)
def test_serve_can_be_ended_while_it_waits_for_triton(number: signal.Signals) -> None:
    process = start("serve", "--port", "0", "--admin-port", "0", *KIND, *NOBODY_THERE)
    assert process.stderr is not None
    try:
        line = ""
        while "waiting for the model server" not in line:
            line = process.stderr.readline()
            assert line, "it ended by itself"
        process.send_signal(number)
        _, rest = process.communicate(timeout=60)
    finally:
        process.kill()

    assert process.returncode == 0
    assert "stopped" in rest
    assert "Traceback" not in rest


def test_serve_says_in_a_line_that_triton_did_not_come_up(samserve: Command) -> None:
    ended = samserve(
        "serve", "--port", "0", "--admin-port", "0", *KIND, *NOBODY_THERE,
        "--set", "triton.startup_s=0.5",
    )  # fmt: skip

    assert ended.code == 1
    assert ended.err.splitlines()[-1] == (
        "samserve: error: the model server cannot be reached; "
        "given up after 0.5 s, triton.startup_s gives a slow start more time"
    )
    assert "Traceback" not in ended.err


def test_doctor_tries_a_click_on_triton_and_tells_the_transport(samserve: Command) -> None:
    url = servers.drawing().grpc_address
    ended = samserve("doctor", *KIND, "--set", f"triton.url={url}")

    assert "model repository: not used by the triton engine" in ended.out
    assert "inference: fake embeds and predicts in" in ended.out
    assert "shared memory" in ended.out


@pytest.mark.parametrize(
    ("memory", "expected"), [("required", "shared_memory"), ("off", "message")]
)
async def test_metrics_tell_the_transport_in_force(memory: str, expected: str) -> None:
    url = servers.drawing().grpc_address
    async with running(settings_for(url, shared_memory=memory)) as service:

        def scrape() -> str:
            with urllib.request.urlopen(f"http://{service.admin_address}/metrics") as answer:
                return str(answer.read().decode())

        text = await asyncio.to_thread(scrape)

    for transport in ("in_process", "shared_memory", "message"):
        value = float(transport == expected)
        assert f'samserve_engine_transport{{transport="{transport}"}} {value}' in text
    scratch = 'samserve_triton_scratch_bytes{state="all"}'
    (line,) = [line for line in text.splitlines() if line.startswith(scratch)]
    assert (float(line.split()[-1]) > 0) == (memory == "required")
