"""Starting, ending, pausing and losing a tritonserver."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.error
from pathlib import Path

import grpc
import pytest

from harness.errors import HarnessError
from harness.triton import processes
from harness.triton.environment import ROOT
from harness.triton.ports import free_ports
from harness.triton.server import TritonServer, crashes
from tests import chosen
from tests.support.waiting import until_sync
from tests.triton import asking

DECODER = "fake_decoder"
# Two of the decoder, one of the encoder.
INSTANCES = 3


def server_in(folder: Path, **options: float) -> TritonServer:
    return TritonServer(chosen.drawing_repository(), log=folder / "log", **options)  # type: ignore[arg-type]  # no others are given


def works(server: TritonServer) -> bool:
    return asking.ask(server, DECODER, asking.prompts())["predicted_iou"].shape == (1, 1, 4)


def test_killed_server_leaves_nothing_behind_and_starts_again_at_the_same_address(
    triton: TritonServer, tmp_path: Path
) -> None:
    with server_in(tmp_path) as server:
        session, address = server.pid, server.grpc_address
        assert len(processes.members(session)) == 1 + INSTANCES
        assert len(server.shared_files()) == INSTANCES

        server.kill()

        assert (processes.members(session), server.shared_files()) == ([], [])
        assert len(triton.shared_files()) == INSTANCES
        assert triton.alive
        with pytest.raises(HarnessError, match="not running"):
            _ = server.pid
        with pytest.raises(urllib.error.URLError):
            server.metrics_text()

        server.revive()

        assert (server.grpc_address == address, server.pid == session) == (True, False)
        assert works(server)
        assert server.revive().pid == server.pid


def test_server_that_has_crashed_is_cleaned_up_and_started_again(tmp_path: Path) -> None:
    before = len(crashes())
    with server_in(tmp_path) as server:
        session = server.pid
        assert not server.crashed
        os.kill(session, signal.SIGSEGV)
        until_sync(lambda: server.crashed)
        assert len(crashes()) == before + 1
        assert len(server.shared_files()) == INSTANCES

        server.revive()

        assert processes.members(session) == []
        assert works(server)
        assert not server.crashed
    # A server that was killed has not crashed.
    assert len(crashes()) == before + 1


def test_paused_server_answers_nothing_until_it_is_resumed(tmp_path: Path) -> None:
    with server_in(tmp_path) as server:
        session = server.pid
        # The thread that takes the signal waits for its turn, as on a busy machine.
        os.sched_setscheduler(session, os.SCHED_IDLE, os.sched_param(0))
        server.pause()
        with grpc.insecure_channel(server.grpc_address) as channel:
            ready = grpc.channel_ready_future(channel)
            with pytest.raises(grpc.FutureTimeoutError):
                ready.result(timeout=0.5)
            ready.cancel()

        server.revive()

        assert works(server)
        server.pause()

    assert processes.members(session) == []


@pytest.mark.slow
def test_failing_start_shows_what_the_server_said(tmp_path: Path) -> None:
    model = tmp_path / "models" / "broken"
    model.mkdir(parents=True)
    (model / "config.pbtxt").write_text('name: "other" backend: "onnxruntime" max_batch_size: 1')
    server = TritonServer(tmp_path / "models", log=tmp_path / "log")

    with pytest.raises(HarnessError, match="ended at start"):
        server.start()

    with pytest.raises(HarnessError, match="not running"):
        _ = server.pid


@pytest.mark.slow
def test_command_serves_until_ctrl_c() -> None:
    ports = free_ports(3)
    names = ("--grpc-port", "--http-port", "--metrics-port")
    arguments = [text for pair in zip(names, map(str, ports), strict=True) for text in pair]
    with subprocess.Popen(
        [sys.executable, "-m", "harness.triton", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        assert command.stdout is not None
        greeting = command.stdout.readline()
        command.send_signal(signal.SIGINT)
        try:
            _, log = command.communicate(timeout=60)
        finally:
            command.kill()

    assert f"triton.url=127.0.0.1:{ports[0]}" in greeting
    assert "Started GRPCInferenceService" in log
    assert command.returncode == 0
