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

from harness.triton import processes
from harness.triton.environment import HOME_VARIABLE, ROOT, HarnessError
from harness.triton.ports import free_ports
from harness.triton.server import TritonServer
from tests.triton import asking

MODELS = ROOT / "model_repository"
DECODER = "sam_tiny_decoder"


def works(server: TritonServer) -> bool:
    return asking.ask(server, DECODER, asking.prompts())["predicted_iou"].shape == (1, 1, 4)


def test_kill_leaves_nothing_behind_and_no_other_server_alone(
    triton: TritonServer, tmp_path: Path
) -> None:
    server = TritonServer(MODELS, log=tmp_path / "log")
    server.start()
    session = server.pid
    assert len(processes.members(session)) == 4
    assert len(server.shared_files()) == 3

    server.kill()

    assert (processes.members(session), server.shared_files()) == ([], [])
    assert len(triton.shared_files()) == 3
    assert works(triton)
    server.kill()


def test_killed_server_starts_again_at_the_same_address(tmp_path: Path) -> None:
    with TritonServer(MODELS, log=tmp_path / "log") as server:
        address, first = server.grpc_address, server.pid
        server.kill()
        with pytest.raises(HarnessError, match="not running"):
            _ = server.pid

        server.start()

        assert (server.grpc_address == address, server.pid == first) == (True, False)
        assert works(server)


def test_server_that_was_killed_from_outside_is_cleaned_up(tmp_path: Path) -> None:
    with TritonServer(MODELS, log=tmp_path / "log") as server:
        session = server.pid
        os.kill(session, signal.SIGKILL)
        assert server.wait() == -signal.SIGKILL
        assert len(server.shared_files()) == 3

    assert (processes.members(session), server.shared_files()) == ([], [])


def test_stop_ends_in_good_order(tmp_path: Path) -> None:
    server = TritonServer(MODELS, log=tmp_path / "log")
    server.start()
    server.stop()

    assert "successfully unloaded 'sam_tiny_decoder'" in (tmp_path / "log").read_text()


def test_paused_server_answers_nothing_until_it_is_resumed(tmp_path: Path) -> None:
    with TritonServer(MODELS, log=tmp_path / "log") as server:
        server.pause()
        with grpc.insecure_channel(server.grpc_address) as channel:
            ready = grpc.channel_ready_future(channel)
            with pytest.raises(grpc.FutureTimeoutError):
                ready.result(timeout=0.5)
            ready.cancel()

        server.resume()

        assert works(server)


def test_killing_works_while_paused(tmp_path: Path) -> None:
    with TritonServer(MODELS, log=tmp_path / "log") as server:
        session = server.pid
        server.pause()

    assert processes.members(session) == []


def test_failing_start_shows_what_the_server_said(tmp_path: Path) -> None:
    model = tmp_path / "models" / "broken"
    model.mkdir(parents=True)
    (model / "config.pbtxt").write_text('name: "other" backend: "onnxruntime" max_batch_size: 1')
    server = TritonServer(tmp_path / "models", log=tmp_path / "log")

    with pytest.raises(HarnessError, match="ended at start"):
        server.start()

    with pytest.raises(HarnessError, match="not running"):
        _ = server.pid


def test_server_that_does_not_get_ready_is_given_up(tmp_path: Path) -> None:
    server = TritonServer(MODELS, log=tmp_path / "log", start_timeout_s=0)

    with pytest.raises(HarnessError, match="not ready in 0 s"):
        server.start()


def test_missing_environment_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "nowhere"))

    with pytest.raises(HarnessError, match=r"no Triton environment at .*nowhere"):
        TritonServer(MODELS, log=tmp_path / "log").start()


def test_metrics_are_read_from_the_server_alone(
    triton: TritonServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")

    assert "nv_inference_exec_count" in triton.metrics_text()


def test_metrics_of_an_ended_server_are_an_error(tmp_path: Path) -> None:
    with TritonServer(MODELS, log=tmp_path / "log") as server:
        pass

    with pytest.raises(urllib.error.URLError):
        server.metrics_text()


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
            _, log = command.communicate(timeout=30)
        finally:
            command.kill()

    assert f"triton.url=127.0.0.1:{ports[0]}" in greeting
    assert "Started GRPCInferenceService" in log
    assert command.returncode == 0
