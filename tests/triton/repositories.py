"""Model repositories for tests of the harness itself."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
from google.protobuf import text_format
from onnx import TensorProto, helper
from tritonclient.grpc import model_config_pb2

from harness.triton.environment import ROOT

ECHO_CONFIG = """
name: "echo"
backend: "onnxruntime"
max_batch_size: 4
default_model_filename: "echo.onnx"
input [
  { name: "bytes" data_type: TYPE_UINT8 dims: [ -1 ] },
  { name: "halves" data_type: TYPE_FP16 dims: [ -1 ] }
]
output [
  { name: "bytes_again" data_type: TYPE_UINT8 dims: [ -1 ] },
  { name: "halves_again" data_type: TYPE_FP16 dims: [ -1 ] },
  { name: "sum" data_type: TYPE_INT64 dims: [ 1 ] }
]
instance_group [ { count: 1 } ]
"""


def write_unbatched(repository: Path, model: str, threads: int) -> None:
    """Copy a committed model, without batching and with a number of threads per run."""
    folder = repository / model
    shutil.copytree(ROOT / "model_repository" / model, folder)
    file = folder / "config.pbtxt"
    config = text_format.Parse(file.read_text(), model_config_pb2.ModelConfig())
    config.ClearField("dynamic_batching")
    config.parameters["intra_op_thread_count"].string_value = str(threads)
    file.write_text(text_format.MessageToString(config))


def write_echo(repository: Path) -> None:
    """Write a model that returns its inputs unchanged, and the sum of the bytes."""
    version = repository / "echo" / "1"
    version.mkdir(parents=True)
    (version.parent / "config.pbtxt").write_text(ECHO_CONFIG)
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    nodes = [
        helper.make_node("Identity", ["bytes"], ["bytes_again"]),
        helper.make_node("Identity", ["halves"], ["halves_again"]),
        helper.make_node("Cast", ["bytes"], ["wide"], to=TensorProto.INT64),
        helper.make_node("ReduceSum", ["wide", "axes"], ["sum"]),
    ]
    inputs = [_open("bytes", TensorProto.UINT8), _open("halves", TensorProto.FLOAT16)]
    outputs = [
        _open("bytes_again", TensorProto.UINT8),
        _open("halves_again", TensorProto.FLOAT16),
        helper.make_tensor_value_info("sum", TensorProto.INT64, ["B", 1]),
    ]
    graph = helper.make_graph(nodes, "echo", inputs, outputs, [axes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, version / "echo.onnx")


def _open(name: str, kind: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, ["B", f"{name}_length"])
