"""The real tritonserver on the committed repository, with the Python backend of the harness.

`tests.engines.triton.test_parity` compares its results with those of a local run.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from harness.triton.environment import BACKEND
from harness.triton.server import TritonServer
from tests.triton import queries, repositories

ENCODER, DECODER = "sam_tiny_encoder", "sam_tiny_decoder"


def test_committed_repository_is_served_unchanged(triton: TritonServer) -> None:
    with queries.client(triton) as client:
        index = client.get_model_repository_index().models
        configs = [client.get_model_config(name).config for name in (ENCODER, DECODER)]

    assert {(model.name, model.state) for model in index} == {
        (ENCODER, "READY"),
        (DECODER, "READY"),
    }
    assert [config.backend for config in configs] == ["onnxruntime", "onnxruntime"]
    assert [config.instance_group[0].count for config in configs] == [1, 2]
    assert [len(config.model_warmup) for config in configs] == [1, 1]


@pytest.mark.slow
def test_tensors_are_transferred_unchanged(tmp_path: Path) -> None:
    # With an unsupported numpy, the Python backend silently returns empty or wrong tensors.
    generator = np.random.default_rng(0)
    repositories.write_echo(tmp_path / "models")
    with TritonServer(tmp_path / "models", log=tmp_path / "server.log") as server:
        for length in (0, 1, 1000, 24 << 20):
            data = generator.integers(0, 256, (1, length), dtype=np.uint8)
            halves = generator.standard_normal((1, 1 + length // 8)).astype(np.float16)

            outputs = queries.infer(server, "echo", {"bytes": data, "halves": halves})

            assert outputs["bytes_again"].tobytes() == data.tobytes()
            assert outputs["halves_again"].tobytes() == halves.tobytes()
            assert outputs["sum"] == data.sum(dtype=np.int64)


def test_failing_run_only_fails_its_own_request(triton: TritonServer) -> None:
    tensors = queries.prompts()
    # Triton does not check that the numbers of points and labels are equal.
    tensors["point_labels"] = np.ones((1, 1, 3), np.float32)

    with pytest.raises(InferenceServerException, match="onnx runtime error") as failed:
        queries.infer(triton, DECODER, tensors)

    assert failed.value.status() == "StatusCode.INTERNAL"
    assert queries.infer(triton, DECODER, queries.prompts())["predicted_iou"].shape == (1, 1, 4)


def load_backend(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Import the backend with a stub for the module that only tritonserver provides."""
    name = "triton_python_backend_utils"
    monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    spec = importlib.util.spec_from_file_location("backend_model", BACKEND)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("version", ["2.0.0", "10.0"])
def test_backend_rejects_numpy_versions_that_corrupt_tensors(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str
) -> None:
    backend = load_backend(monkeypatch)
    monkeypatch.setattr(np, "__version__", version)

    with pytest.raises(RuntimeError, match=f"numpy {version}.*corrupts"):
        backend.TritonPythonModel().initialize({"model_repository": str(tmp_path)})
