"""The real tritonserver on the committed repository, with the stand-in for NVIDIA's backend.

`tests.engines.triton.test_parity` says that it computes the bits of a local run, also in batches.
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
from tests.triton import asking, repositories

ENCODER, DECODER = "sam_tiny_encoder", "sam_tiny_decoder"


def test_committed_repository_is_served_as_it_is(triton: TritonServer) -> None:
    with asking.client(triton) as client:
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
def test_tensors_arrive_and_return_unchanged(tmp_path: Path) -> None:
    # With a numpy that the Python backend does not know, they are empty or wrong without an error.
    generator = np.random.default_rng(0)
    repositories.write_echo(tmp_path / "models")
    with TritonServer(tmp_path / "models", log=tmp_path / "server.log") as server:
        for length in (0, 1, 1000, 24 << 20):
            data = generator.integers(0, 256, (1, length), dtype=np.uint8)
            halves = generator.standard_normal((1, 1 + length // 8)).astype(np.float16)

            found = asking.ask(server, "echo", {"bytes": data, "halves": halves})

            assert found["bytes_again"].tobytes() == data.tobytes()
            assert found["halves_again"].tobytes() == halves.tobytes()
            assert found["sum"] == data.sum(dtype=np.int64)


def test_failing_run_is_an_error_of_its_request_alone(triton: TritonServer) -> None:
    tensors = asking.prompts()
    # Triton does not know that the number of points and of labels must agree.
    tensors["point_labels"] = np.ones((1, 1, 3), np.float32)

    with pytest.raises(InferenceServerException, match="onnx runtime error") as failed:
        asking.ask(triton, DECODER, tensors)

    assert failed.value.status() == "StatusCode.INTERNAL"
    assert asking.ask(triton, DECODER, asking.prompts())["predicted_iou"].shape == (1, 1, 4)


def load_backend(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Import the backend as tritonserver does, which alone has the module of utilities."""
    name = "triton_python_backend_utils"
    monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    spec = importlib.util.spec_from_file_location("backend_model", BACKEND)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("version", ["2.0.0", "10.0"])
def test_backend_refuses_a_numpy_that_corrupts_tensors(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str
) -> None:
    backend = load_backend(monkeypatch)
    monkeypatch.setattr(np, "__version__", version)

    with pytest.raises(RuntimeError, match=f"numpy {version}.*corrupts"):
        backend.TritonPythonModel().initialize({"model_repository": str(tmp_path)})
