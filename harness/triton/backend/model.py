"""A Python-based Triton backend that replaces NVIDIA's ``onnxruntime`` backend.

tritonserver loads it, under that name, into one process for each instance of a model.  It has the
features of NVIDIA's backend that the model repository needs, and no others: no optional inputs, no
termination of a run that has begun, no idle threads that sleep.

For tests only, it can hold runs, which makes a model slow without computing: see `_Hold`.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb


class TritonPythonModel:
    """One instance of one model; Triton calls its methods by name."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the session.  ``args`` come from Triton and include the configuration as JSON."""
        _check_numpy()
        config = json.loads(args["model_config"])
        file = config.get("default_model_filename") or "model.onnx"
        path = Path(args["model_repository"]) / args["model_version"] / file
        self._session = ort.InferenceSession(
            path, _session_options(config), providers=["CPUExecutionProvider"]
        )
        self._inputs = [tensor.name for tensor in self._session.get_inputs()]
        self._outputs = [tensor.name for tensor in self._session.get_outputs()]
        self._hold = _Hold.of(config)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Run all requests as one batch; Triton only batches requests of equal shapes."""
        try:
            return self._run(requests)
        except Exception as error:  # any error concerns only these requests
            failure = pb.TritonError(f"onnx runtime error: {error}")
            return [pb.InferenceResponse(error=failure) for _ in requests]

    def _run(self, requests: Sequence[Any]) -> list[Any]:
        parts = [[_array(request, name) for name in self._inputs] for request in requests]
        sizes = [arrays[0].shape[0] for arrays in parts]
        batch = [_joined(arrays) for arrays in zip(*parts, strict=True)]
        if self._hold is not None:
            self._hold.wait(dict(zip(self._inputs, batch, strict=True)))
        results = self._session.run(self._outputs, dict(zip(self._inputs, batch, strict=True)))
        ends = np.cumsum(sizes)
        return [
            self._response(request, [result[end - size : end] for result in results])
            for request, size, end in zip(requests, sizes, ends, strict=True)
        ]

    def _response(self, request: Any, results: list[np.ndarray]) -> Any:
        wanted = set(request.requested_output_names())
        tensors = [
            pb.Tensor(name, result)
            for name, result in zip(self._outputs, results, strict=True)
            if name in wanted
        ]
        return pb.InferenceResponse(output_tensors=tensors)


class _Hold:
    """Delays some runs, for tests that need a model to be busy.

    The parameter ``hold_runs`` of a model's configuration enables it, as JSON: a run is held if any
    row of the input ``input`` begins with the numbers ``prefix``.  While a run is held, it has a
    file in ``folder``; it continues once that file is removed, or after five minutes.
    """

    _LONGEST_S = 300.0
    _POLL_S = 0.005

    def __init__(self, folder: str, name: str, prefix: Sequence[float]) -> None:
        self._folder = Path(folder)
        self._name = name
        self._prefix = np.array(prefix)

    @classmethod
    def of(cls, config: dict[str, Any]) -> _Hold | None:
        """Read a model's configuration; None if it holds no runs."""
        text = config.get("parameters", {}).get("hold_runs", {}).get("string_value")
        if not text:
            return None
        hold = json.loads(text)
        return cls(hold["folder"], hold["input"], hold["prefix"])

    def wait(self, inputs: dict[str, np.ndarray]) -> None:
        """Wait until this run may continue."""
        array = inputs[self._name]
        prefixes = array.reshape(len(array), -1)[:, : len(self._prefix)]
        if not (prefixes == self._prefix).all(axis=1).any():
            return
        mark = self._folder / uuid.uuid4().hex
        mark.touch()
        deadline = time.monotonic() + self._LONGEST_S
        while mark.exists() and time.monotonic() < deadline:
            time.sleep(self._POLL_S)
        mark.unlink(missing_ok=True)


def _check_numpy() -> None:
    if int(np.__version__.split(".")[0]) >= 2:
        raise RuntimeError(
            f"numpy {np.__version__}: the Python backend of this tritonserver silently corrupts "
            "tensors with numpy 2 or newer; install numpy 1.26.4"
        )


def _session_options(config: dict[str, Any]) -> ort.SessionOptions:
    """Read the parameters that NVIDIA's backend reads, with the same defaults.

    As in that backend, idle threads spin, and only a thread count of one prevents that.
    """
    parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
    options = ort.SessionOptions()
    options.intra_op_num_threads = int(parameters.get("intra_op_thread_count", 0))
    options.inter_op_num_threads = int(parameters.get("inter_op_thread_count", 0))
    options.execution_mode = _EXECUTION_MODES[parameters.get("execution_mode", "0")]
    options.enable_cpu_mem_arena = _boolean(parameters.get("enable_mem_arena", "1"))
    options.enable_mem_pattern = _boolean(parameters.get("enable_mem_pattern", "1"))
    level = config.get("optimization", {}).get("graph", {}).get("level", 0)
    options.graph_optimization_level = _LEVELS[int(level)]
    return options


_EXECUTION_MODES = {
    "0": ort.ExecutionMode.ORT_SEQUENTIAL,
    "1": ort.ExecutionMode.ORT_PARALLEL,
}
_LEVELS = {
    -1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    0: ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}


def _boolean(text: str) -> bool:
    return {"1": True, "true": True, "on": True, "0": False, "false": False, "off": False}[
        text.lower()
    ]


def _array(request: Any, name: str) -> np.ndarray:
    array: np.ndarray = pb.get_input_tensor_by_name(request, name).as_numpy()
    return array


def _joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
