"""Writing a Triton config.pbtxt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from onnx import TensorProto

from samserve.export.errors import ExportError
from samserve.export.graph import ANY, GraphInterface, GraphTensor

TRITON_TYPES: Mapping[int, str] = {
    TensorProto.BOOL: "TYPE_BOOL",
    TensorProto.UINT8: "TYPE_UINT8",
    TensorProto.INT32: "TYPE_INT32",
    TensorProto.INT64: "TYPE_INT64",
    TensorProto.FLOAT16: "TYPE_FP16",
    TensorProto.FLOAT: "TYPE_FP32",
}
"""Triton's names for the element types of ONNX."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The configuration of one model; ``scheduling`` is inserted as it is."""

    name: str
    max_batch_size: int
    interface: GraphInterface
    scheduling: str
    parameters: Mapping[str, str]


def config_text(config: ModelConfig) -> str:
    """Return a complete configuration, so that Triton infers nothing by itself."""
    parts = [
        f"name: {_quoted(config.name)}\n",
        'backend: "onnxruntime"\n',
        f"max_batch_size: {config.max_batch_size}\n",
        _tensors("input", config.interface.inputs),
        _tensors("output", config.interface.outputs),
        config.scheduling,
        *[parameter_text(key, value) for key, value in config.parameters.items()],
    ]
    return "".join(parts)


def _tensors(field: str, tensors: tuple[GraphTensor, ...]) -> str:
    lines = ",\n".join(f"  {_tensor(tensor)}" for tensor in tensors)
    return f"{field} [\n{lines}\n]\n"


def _tensor(tensor: GraphTensor) -> str:
    if not tensor.dims or tensor.dims[0] != ANY:
        raise ExportError(f"{tensor.name!r} has no open batch axis")
    if tensor.elem_type not in TRITON_TYPES:
        raise ExportError(f"{tensor.name!r} has an element type that is not supported")
    # Triton adds the batch axis itself, because max_batch_size is above zero.
    dims = ", ".join(str(dim) for dim in tensor.dims[1:])
    data_type = TRITON_TYPES[tensor.elem_type]
    return f"{{ name: {_quoted(tensor.name)} data_type: {data_type} dims: [ {dims} ] }}"


def parameter_text(key: str, value: str) -> str:
    """Return one parameter as a line of its own."""
    return f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(value)} }} }}\n"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
