"""ONNX models on disk.

One ONNX file is one protobuf message, which ends at 2 GiB.  The weights of a larger model lie in a
file beside it, which every runtime finds by the name that the model gives.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import convert_model_to_external_data

from samserve.export.errors import ExportError
from samserve.models.digest import DATA_FILE, MODEL_FILE

LARGEST_FILE_BYTES = 2**31 - 2**20
"""A little is left for the graph itself."""

EXTERNAL_FROM_BYTES = 1024
"""Smaller tensors stay in the model, where shape inference may need them."""


def save(model: onnx.ModelProto, folder: Path, *, largest: int = LARGEST_FILE_BYTES) -> Path:
    """Write the model into a folder, its weights beside it if they exceed *largest* bytes.

    The same model gives the same bytes.  Returns the path of the model; *model* may be changed.
    """
    path = folder / MODEL_FILE
    weights = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if weights > largest:
        convert_model_to_external_data(
            model, location=DATA_FILE, size_threshold=EXTERNAL_FROM_BYTES, convert_attribute=False
        )
        onnx.save_model(model, path)
        # It is written for its owner alone; who may read the model may read its weights.
        path.with_name(DATA_FILE).chmod(path.stat().st_mode)
    else:
        path.write_bytes(serialized(model))
    return path


def serialized(model: onnx.ModelProto) -> bytes:
    """Write a model of less than 2 GiB as one message; the same model gives the same bytes."""
    return bytes(model.SerializeToString(deterministic=True))


def parsed(content: bytes) -> onnx.ModelProto:
    """Read a model that lies in one message.  Raises `ExportError`."""
    try:
        return onnx.load_model_from_string(content)
    except DecodeError as error:
        raise ExportError("not an ONNX file") from error
