"""The stand-in reads what NVIDIA's backend reads, and NVIDIA's own takes its place if it is there.

The parameters and their defaults are those of triton-inference-server/onnxruntime_backend, r24.10.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest

from harness.triton.environment import BACKEND_VARIABLE, find_home
from tests.triton.test_harness import load_backend


def options_of(monkeypatch: pytest.MonkeyPatch, **given: str) -> Any:
    parameters = {key: {"string_value": value} for key, value in given.items()}
    return load_backend(monkeypatch)._session_options({"parameters": parameters})


def test_without_parameters_it_has_the_runtime_s_own_defaults(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, own = options_of(monkeypatch), ort.SessionOptions()

    for name in (
        *("intra_op_num_threads", "inter_op_num_threads", "execution_mode"),
        *("enable_cpu_mem_arena", "enable_mem_pattern", "graph_optimization_level"),
    ):
        assert getattr(found, name) == getattr(own, name), name


@pytest.mark.parametrize("threads", ["", "2"])
def test_idle_threads_wait_actively(monkeypatch: pytest.MonkeyPatch, threads: str) -> None:
    given = {"intra_op_thread_count": threads} if threads else {}
    options = options_of(monkeypatch, **given)

    # Nothing has switched it off; it is on by default.
    with pytest.raises(RuntimeError, match="allow_spinning"):
        options.get_session_config_entry("session.intra_op.allow_spinning")


def test_parameters_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    options = options_of(
        monkeypatch,
        intra_op_thread_count="3",
        inter_op_thread_count="2",
        execution_mode="1",
        enable_mem_arena="off",
        enable_mem_pattern="false",
    )

    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 2)
    assert options.execution_mode == ort.ExecutionMode.ORT_PARALLEL
    assert not options.enable_cpu_mem_arena
    assert not options.enable_mem_pattern


def test_the_level_of_optimizations_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read = load_backend(monkeypatch)._session_options
    options = read({"optimization": {"graph": {"level": -1}}})

    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_BASIC


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("intra_op_thread_count", "many"),
        ("execution_mode", "2"),
        ("enable_mem_arena", "perhaps"),
    ],
)
def test_what_nvidia_s_backend_refuses_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    with pytest.raises((ValueError, KeyError)):
        options_of(monkeypatch, **{name: value})


def test_nvidia_s_own_backend_takes_the_place_of_the_stand_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    built = tmp_path / "built"
    built.mkdir()
    (built / "libtriton_onnxruntime.so").touch()

    for folder, named in ((tmp_path / "own", str(built)), (tmp_path / "stand-in", "")):
        monkeypatch.setenv(BACKEND_VARIABLE, named)
        find_home().copy_backends(folder)

    own, stand_in = (
        {file.name for file in (tmp_path / name / "onnxruntime").iterdir()}
        for name in ("own", "stand-in")
    )
    assert own == {"libtriton_onnxruntime.so"}
    assert stand_in == {"model.py"}
