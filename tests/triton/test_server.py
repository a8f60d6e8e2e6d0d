"""Starting, stopping, pausing and killing a tritonserver."""

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
from harness.triton.server import TritonServer, crash_logs
from tests import engine_choice
from tests.support.waiting import until_sync
from tests.triton import queries

DECODER = "fake_decoder"
# Two instances of the decoder, one of the encoder.
INSTANCES = 3


def server_in(folder: Path, **options: float) -> TritonServer:
    return TritonServer(engine_choice.drawing_repository(), log=folder / "log", **options)  # type: ignore[arg-type]  # no others are given


def works(server: TritonServer) -> bool:
    return queries.infer(server, DECODER, queries.prompts())["predicted_iou"].shape == (1, 1, 4)


def test_killed_server_leaves_no_processes_or_files_and_restarts_at_the_same_address(
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

        server.ensure_running()

        assert (server.grpc_address == address, server.pid == session) == (True, False)
        assert works(server)
        assert server.ensure_running().pid == server.pid


def test_crashed_server_is_cleaned_up_and_restarted(tmp_path: Path) -> None:
    before = len(crash_logs())
    with server_in(tmp_path) as server:
        session = server.pid
        assert not server.crashed
        os.kill(session, signal.SIGSEGV)
        until_sync(lambda: server.crashed)
        assert len(crash_logs()) == before + 1
        assert len(server.shared_files()) == INSTANCES

        server.ensure_running()

        assert processes.members(session) == []
        assert works(server)
        assert not server.crashed
    # A server that was killed has not crashed.
    assert len(crash_logs()) == before + 1


def test_paused_server_does_not_respond_until_it_is_resumed(tmp_path: Path) -> None:
    with server_in(tmp_path) as server:
        session = server.pid
        # The thread that handles the signal is scheduled late, as on a busy machine.
        os.sched_setscheduler(session, os.SCHED_IDLE, os.sched_param(0))
        server.pause()
        with grpc.insecure_channel(server.grpc_address) as channel:
            ready = grpc.channel_ready_future(channel)
            with pytest.raises(grpc.FutureTimeoutError):
                ready.result(timeout=0.5)
            ready.cancel()

        server.ensure_running()

        assert works(server)
        server.pause()

    assert processes.members(session) == []


@pytest.mark.slow
def test_error_of_a_failed_start_contains_the_log(tmp_path: Path) -> None:
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
