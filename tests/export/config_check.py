"""Helpers that compare a config.pbtxt with its graph."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
from google.protobuf import text_format
from samserve.app import default_repository
from samserve.export.stamp import stamp
from samserve.models.digest import DIGEST_OUTPUT, stamp_bytes
from samserve.models.repository import Bundle, discover
from tritonclient.grpc import model_config_pb2

TRITON_TYPE = {
    onnx.TensorProto.UINT8: model_config_pb2.TYPE_UINT8,
    onnx.TensorProto.INT32: model_config_pb2.TYPE_INT32,
    onnx.TensorProto.FLOAT: model_config_pb2.TYPE_FP32,
    onnx.TensorProto.FLOAT16: model_config_pb2.TYPE_FP16,
}


def copied(folder: Path) -> Path:
    """Copy the default model's repository into a folder."""
    return shutil.copytree(default_repository(), folder / "models")


def only(repository: Path) -> Bundle[Path]:
    """Return the only model of a repository."""
    (model,) = discover(repository)
    return model


def contents(folder: Path) -> dict[str, bytes]:
    """Return the content of all files in a folder, by relative path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def read_config(folder: Path) -> model_config_pb2.ModelConfig:
    """Parse ``config.pbtxt`` with Triton's schema; unknown fields are errors."""
    text = (folder / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def read_graph(folder: Path) -> onnx.ModelProto:
    """Load version 1 of the model."""
    return onnx.load(folder / "1" / "model.onnx")


def unstamped(path: Path) -> bytes:
    """Return the file of a graph without its stamp."""
    size = stamp_bytes(path)
    assert size > 0
    return path.read_bytes()[:-size]


def age(repository: Path, name: str, *, stamped: bool = False) -> None:
    """Convert a model to the format of earlier exports, whose graphs did not output the encoder.

    If *stamped*, graphs output the digest of the model, as a later format did; else no digest.
    """
    for role in ("encoder", "decoder"):
        folder = repository / f"{name}_{role}"
        graph, config = folder / "1" / "model.onnx", folder / "config.pbtxt"
        digest = parameters(read_config(folder))["samserve.digest"]
        graph.write_bytes(unstamped(graph))
        if stamped:
            stamp(graph, digest)
        removed = ("samserve.encoder_digest", *(() if stamped else (DIGEST_OUTPUT,)))
        lines = config.read_text().splitlines(keepends=True)
        kept = [line for line in lines if not any(each in line for each in removed)]
        # Removes the comma after the previous output.
        config.write_text("".join(kept).replace("},\n]", "}\n]"))


def declared(tensors) -> list[tuple[str, int, list[int]]]:
    """Return name, type and dims with the batch axis, as the configuration declares them."""
    return [(tensor.name, tensor.data_type, [-1, *tensor.dims]) for tensor in tensors]


def actual(values) -> list[tuple[str, int, list[int]]]:
    """Return name, type and dims with the batch axis, as the graph declares them."""
    return [
        (
            value.name,
            TRITON_TYPE[value.type.tensor_type.elem_type],
            [dim.dim_value or -1 for dim in value.type.tensor_type.shape.dim],
        )
        for value in values
    ]


def parameters(config: model_config_pb2.ModelConfig) -> dict[str, str]:
    """Return the string parameters of a configuration."""
    return {key: value.string_value for key, value in config.parameters.items()}
