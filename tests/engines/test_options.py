"""Options that ONNX Runtime and Triton accept as text: unknown ones may be ignored silently."""

from __future__ import annotations

import ast
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from google.protobuf import text_format
from onnxruntime.capi import onnxruntime_pybind11_state
from prometheus_client import CollectorRegistry
from samserve.app import default_repository
from samserve.engines.onnx import OnnxEngine
from samserve.export.overlays import Overlays, TensorRt, acceleration
from samserve.models.repository import discover
from samserve.telemetry.metrics import Metrics
from tritonclient.grpc import model_config_pb2

from harness.triton.environment import find_home
from tests.oracle.onnx_sam import without_threshold
from tests.support.waiting import until_sync
from tests.triton import servers

ROOT = Path(__file__).parents[2]
FOLDERS = ("service", "harness", "training", "benchmarks", "monitoring")

# README of triton-inference-server/onnxruntime_backend: parameters of its accelerator "tensorrt"
# and of a model.  The harness does not have that backend, so their effect is not tested here.
TENSORRT = {
    *("precision_mode", "max_workspace_size_bytes"),
    *("trt_engine_cache_enable", "trt_engine_cache_path"),
}
OF_MODELS = {"intra_op_thread_count", "inter_op_thread_count", "execution_mode"}

# Options of tritonserver versions newer than the harness's, from its documentation.
NEWER = {"allow-client-shm", "grpc-infer-thread-count"}


def literals(start: str) -> set[str]:
    """Return the string literals of the code that begin with *start*."""
    paths = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    return {
        node.value
        for path in paths
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(rf"{re.escape(start)}[a-z_.]+", node.value)
    }


def test_session_options_are_known_to_onnx_runtime() -> None:
    """It ignores unknown entries; its library contains the names of all known ones."""
    library = Path(onnxruntime_pybind11_state.__file__).read_bytes()
    named = literals("session.")

    assert "session.intra_op.allow_spinning" in named
    assert [name for name in sorted(named) if name.encode() + b"\0" not in library] == []
    assert b"session.intra_op.allow_spining\0" not in library


def test_threads_of_the_engine_do_not_spin_between_runs() -> None:
    """The threads of ONNX Runtime spin by default."""
    (files,) = discover(default_repository())
    options = ort.SessionOptions()
    options.intra_op_num_threads = 4
    before = _threads()
    engine = OnnxEngine(default_repository(), 4, Metrics(CollectorRegistry()))
    ours, between = engine._bundles[files.info.name].graphs["decoder"], _threads()
    default = ort.InferenceSession(files.graphs["decoder"], options)
    sessions = {ours: between - before, default: _threads() - between}
    spent = dict.fromkeys(sessions, 0.0)

    def spun() -> bool:
        for session, threads in sessions.items():
            spent[session] += _spent_after_a_run(session, threads)
        return spent[default] > 0.1

    until_sync(spun)

    assert all(sessions.values())
    assert spent[ours] < spent[default] / 4


def test_sessions_of_the_engine_have_no_memory_pattern() -> None:
    """The arena would hold the tensors of a run twice."""
    engine = OnnxEngine(default_repository(), 1, Metrics(CollectorRegistry()))
    (bundle,) = engine._bundles.values()

    assert [each.get_session_options().enable_mem_pattern for each in bundle.graphs.values()] == [
        False,
        False,
    ]


def _threads() -> set[int]:
    return {int(path.name) for path in Path("/proc/self/task").iterdir()}


def _spent_after_a_run(session: ort.InferenceSession, threads: set[int]) -> float:
    """Return the CPU seconds of these threads while they are idle."""
    session.run(
        ["predicted_iou"],
        {
            "image_embedding": np.zeros((1, 256, 64, 64), np.float16),
            "point_coords": np.zeros((1, 1, 2, 2), np.float32),
            "point_labels": np.ones((1, 1, 2), np.float32),
            "mask_input": np.zeros((1, 0, 256, 256), np.float32),
            **without_threshold(session),
        },
    )
    before = sum(map(_cpu_of, threads))
    time.sleep(0.02)
    return sum(map(_cpu_of, threads)) - before


def _cpu_of(thread: int) -> float:
    # The clock id of a thread, as the kernel computes it (posix-timers_types.h).
    return time.clock_gettime((~thread << 3) | 6)


def test_parameters_of_configurations_are_known_to_the_backend() -> None:
    config = text_format.Parse(
        acceleration(Overlays(tensorrt=TensorRt.FP16)), model_config_pb2.ModelConfig()
    )
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "tensorrt"
    assert set(accelerator.parameters) <= TENSORRT

    for path in default_repository().glob("*/config.pbtxt"):
        served = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
        assert {name for name in served.parameters if "samserve." not in name} <= OF_MODELS

    shown = list(_code("docs/triton.md", "protobuf"))
    assert len(shown) == 3
    for text in shown:
        # Unknown fields are errors here, as in Triton.
        example = text_format.Parse(text, model_config_pb2.ModelConfig())
        assert set(example.parameters) <= OF_MODELS
        for each in example.optimization.execution_accelerators.gpu_execution_accelerator:
            assert set(each.parameters) <= TENSORRT


def _code(document: str, language: str) -> Iterator[str]:
    text = (ROOT / document).read_text()
    yield from re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def _run_tritonserver(*options: str) -> tuple[int, str]:
    """Run tritonserver with options that make it exit; return its exit status and output."""
    with tempfile.TemporaryFile("w+") as output:
        home = find_home()
        process = subprocess.Popen(
            [home.server, *options], env=home.variables({}), stdout=output, stderr=output
        )
        code = process.wait()
        output.seek(0)
        return code, output.read()


@cache
def known_to_tritonserver() -> frozenset[str]:
    """Return the names of its options, from its help."""
    names = re.findall(r"^\s*--([a-z0-9-]+)", _run_tritonserver("--help")[1], re.MULTILINE)
    assert "model-repository" in names
    return frozenset(names)


@pytest.mark.parametrize(
    "document",
    [
        "docs/triton.md",
        "docs/deploy.md",
        "docs/operations.md",
        "helm/samserve/templates/_triton.tpl",
    ],
    ids=["triton", "deploy", "operations", "chart"],
)
def test_documented_options_of_tritonserver_exist(document: str) -> None:
    text = (ROOT / document).read_text()
    commands = re.findall(r"(?<![/\w-])tritonserver(?: (?:\\\n|[^`\n])*)?", text)
    if document.startswith("helm"):
        (commands,) = [re.findall(r'define "samserve\.tritonArgs".*?define ', text, re.DOTALL)]
    named = {name for each in commands for name in re.findall(r"--([a-z][a-z0-9-]+)=", each)}
    # Options in tables and sentences.
    named |= set(re.findall(r"`--((?:grpc|http|allow|model|trace)-[a-z0-9-]+)", text))

    assert sorted(named - known_to_tritonserver() - NEWER) == []
    assert named or "deploy" in document


def test_tritonserver_rejects_unknown_options_but_not_unknown_backend_settings() -> None:
    code, output = _run_tritonserver("--model-repository=/nowhere", "--no-such-option=1")
    assert code == 1
    assert "unrecognized option '--no-such-option=1'" in output

    # Settings of a backend are opaque to it.
    library = next(
        (find_home().server.parents[1] / "backends" / "python").glob("libtriton_python.so")
    )
    names = re.findall(r"python,(shm-[a-z-]+)=", (ROOT / "harness/triton/server.py").read_text())
    assert sorted(names) == ["shm-default-byte-size", "shm-region-prefix-name"]
    assert [name for name in names if name.encode() + b"\0" not in library.read_bytes()] == []


def test_shared_memory_of_the_harness_has_the_configured_size() -> None:
    server = servers.default()
    sizes = {path.stat().st_size for path in server.shared_files()}

    # The default is 1 MiB, and it grows.
    assert min(sizes) >= 16 << 20
