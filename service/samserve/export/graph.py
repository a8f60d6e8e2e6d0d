"""The inputs and outputs of an ONNX graph."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from samserve.export.errors import ExportError

ANY = -1
"""A dynamic dimension, in the notation of Triton."""


@dataclass(frozen=True, slots=True)
class GraphTensor:
    """An input or output: ``elem_type`` is an ``onnx.TensorProto`` type, ``dims`` with batch."""

    name: str
    elem_type: int
    dims: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GraphInterface:
    """The inputs and outputs of a graph, in its order."""

    inputs: tuple[GraphTensor, ...]
    outputs: tuple[GraphTensor, ...]

    def input(self, name: str) -> GraphTensor:
        """Return an input by name.  Raises `ExportError`."""
        for tensor in self.inputs:
            if tensor.name == name:
                return tensor
        raise ExportError(f"the graph has no input {name!r}")


def read_interface(model: onnx.ModelProto) -> GraphInterface:
    """Read the interface of a model."""
    # Old files list the weights among the inputs; only inputs without a value must be sent.
    weights = {initializer.name for initializer in model.graph.initializer}
    return GraphInterface(
        inputs=tuple(_tensor(value) for value in model.graph.input if value.name not in weights),
        outputs=tuple(_tensor(value) for value in model.graph.output),
    )


def _tensor(value: onnx.ValueInfoProto) -> GraphTensor:
    tensor = value.type.tensor_type
    dims = tuple(
        dim.dim_value if dim.WhichOneof("value") == "dim_value" else ANY for dim in tensor.shape.dim
    )
    return GraphTensor(value.name, tensor.elem_type, dims)
