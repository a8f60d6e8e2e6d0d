"""The Python backend reads the parameters of NVIDIA's backend, which replaces it if configured.

The parameters and their defaults are those of triton-inference-server/onnxruntime_backend, r24.10.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest

from harness.triton.environment import BACKEND_VARIABLE, find_home
from tests.triton.test_harness import load_backend


def options_of(monkeypatch: pytest.MonkeyPatch, **texts: str) -> Any:
    parameters = {key: {"string_value": value} for key, value in texts.items()}
    return load_backend(monkeypatch)._session_options({"parameters": parameters})


def test_defaults_are_those_of_onnx_runtime(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options, defaults = options_of(monkeypatch), ort.SessionOptions()

    for name in (
        *("intra_op_num_threads", "inter_op_num_threads", "execution_mode"),
        *("enable_cpu_mem_arena", "enable_mem_pattern", "graph_optimization_level"),
    ):
        assert getattr(options, name) == getattr(defaults, name), name
    # Spinning is on by default; the backend does not set it.
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
    read = load_backend(monkeypatch)._session_options
    level = read({"optimization": {"graph": {"level": -1}}}).graph_optimization_level

    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 2)
    assert options.execution_mode == ort.ExecutionMode.ORT_PARALLEL
    assert (options.enable_cpu_mem_arena, options.enable_mem_pattern) == (False, False)
    assert level == ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    for name in ("intra_op_thread_count", "execution_mode", "enable_mem_arena"):
        with pytest.raises((ValueError, KeyError)):
            options_of(monkeypatch, **{name: "perhaps"})


def test_nvidia_backend_replaces_the_python_backend_if_configured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "built").mkdir()
    (tmp_path / "built" / "libtriton_onnxruntime.so").touch()

    for named, file in ((str(tmp_path / "built"), "libtriton_onnxruntime.so"), ("", "model.py")):
        monkeypatch.setenv(BACKEND_VARIABLE, named)
        find_home().copy_backends(tmp_path / file)
        found = [path.name for path in (tmp_path / file / "onnxruntime").iterdir()]
        assert found == [file]
