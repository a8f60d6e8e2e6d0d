"""The real tritonserver on the committed repository, with the stand-in for NVIDIA's backend."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from tritonclient.utils import InferenceServerException

from harness.triton.environment import BACKEND, ROOT
from harness.triton.server import TritonServer
from tests.triton import asking, repositories

THREADS = 1
ENCODER, DECODER = "sam_tiny_encoder", "sam_tiny_decoder"


@pytest.fixture(scope="module")
def unbatched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """The committed models, where every request is a run of its own, and ``echo``."""
    folder = tmp_path_factory.mktemp("unbatched")
    for model in (ENCODER, DECODER):
        repositories.write_unbatched(folder / "models", model, THREADS)
    repositories.write_echo(folder / "models")
    with TritonServer(folder / "models", log=folder / "server.log") as server:
        yield server


def run_here(model: str, tensors: asking.Tensors) -> asking.Tensors:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    path = ROOT / "model_repository" / model / "1" / "model.onnx"
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, tensors), strict=True))


def assert_same_bits(found: asking.Tensors, expected: asking.Tensors) -> None:
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes(), name


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


def test_encoder_computes_the_bits_of_a_local_run(unbatched: TritonServer) -> None:
    tensors = asking.picture()

    assert_same_bits(asking.ask(unbatched, ENCODER, tensors), run_here(ENCODER, tensors))


@pytest.mark.parametrize(("count", "masks"), [(1, 0), (1, 1), (3, 0), (3, 3)])
def test_decoder_computes_the_bits_of_a_local_run(
    unbatched: TritonServer, count: int, masks: int
) -> None:
    tensors = asking.prompts(count=count, masks=masks)

    assert_same_bits(asking.ask(unbatched, DECODER, tensors), run_here(DECODER, tensors))


@pytest.mark.parametrize("length", [0, 1, 1000, 24 << 20], ids=str)
def test_tensors_arrive_and_return_unchanged(unbatched: TritonServer, length: int) -> None:
    # With a numpy that the Python backend does not know, they are empty or wrong without an error.
    generator = np.random.default_rng(0)
    data = generator.integers(0, 256, (1, length), dtype=np.uint8)
    halves = generator.standard_normal((1, 1 + length // 8)).astype(np.float16)

    found = asking.ask(unbatched, "echo", {"bytes": data, "halves": halves})

    total = np.array([[data.sum(dtype=np.int64)]])
    assert_same_bits(found, {"bytes_again": data, "halves_again": halves, "sum": total})


def test_only_requested_outputs_are_returned(triton: TritonServer) -> None:
    found = asking.ask(triton, DECODER, asking.prompts(), outputs=["predicted_iou"])

    assert list(found) == ["predicted_iou"]


def test_request_without_the_mask_tensor_is_refused(triton: TritonServer) -> None:
    tensors = asking.prompts()
    del tensors["mask_input"]

    with pytest.raises(InferenceServerException, match="expected 4 inputs but got 3") as refused:
        asking.ask(triton, DECODER, tensors)
    assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_failing_run_is_an_error_of_its_request_alone(triton: TritonServer) -> None:
    tensors = asking.prompts()
    # Triton does not know that the number of points and of labels must agree.
    tensors["point_labels"] = np.ones((1, 1, 3), np.float32)

    with pytest.raises(InferenceServerException, match="onnx runtime error") as failed:
        asking.ask(triton, DECODER, tensors)

    assert failed.value.status() == "StatusCode.INTERNAL"
    assert asking.ask(triton, DECODER, asking.prompts())["predicted_iou"].shape == (1, 1, 4)


def test_batch_of_requests_is_one_run_and_is_split_right(triton: TritonServer) -> None:
    requests = [asking.prompts(seed, count=4) for seed in range(12)]
    alone = [run_here(DECODER, request) for request in requests]
    success, runs = "nv_inference_request_success", "nv_inference_exec_count"
    before = {name: asking.metric(triton, name, DECODER) for name in (success, runs)}

    with ThreadPoolExecutor(len(requests)) as pool:
        found = list(pool.map(lambda request: asking.ask(triton, DECODER, request), requests))

    succeeded = asking.settled_metric(triton, success, DECODER, before[success] + len(requests))
    assert succeeded - before[success] == len(requests)
    assert 0 < asking.metric(triton, runs, DECODER) - before[runs] < len(requests)
    for mine, expected in zip(found, alone, strict=True):
        for name, array in expected.items():
            np.testing.assert_allclose(mine[name], array, rtol=0, atol=1e-3)
    # The tolerance tells the requests apart.
    assert np.abs(alone[0]["low_res_logits"] - alone[1]["low_res_logits"]).max() > 1


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


@pytest.mark.parametrize("version", ["2.0.0", "2.4.6", "10.0"])
def test_backend_refuses_a_numpy_that_corrupts_tensors(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str
) -> None:
    backend = load_backend(monkeypatch)
    monkeypatch.setattr(np, "__version__", version)

    with pytest.raises(RuntimeError, match=f"numpy {version}.*corrupts"):
        backend.TritonPythonModel().initialize({"model_repository": str(tmp_path)})
