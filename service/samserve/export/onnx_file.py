"""ONNX models on disk.

An ONNX file is one protobuf message, which is limited to 2 GiB.  The weights of a larger model are
in a second file in the same folder, whose name is stored in the model.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import convert_model_to_external_data

from samserve.export.errors import ExportError
from samserve.models.digest import DATA_FILE, MODEL_FILE

MAX_FILE_BYTES = 2**31 - 2**20
"""Leaves 1 MiB for the graph itself."""

EXTERNAL_FROM_BYTES = 1024
"""Minimum size of external tensors; shape inference may need smaller ones in the model."""


def save(model: onnx.ModelProto, folder: Path, *, max_bytes: int = MAX_FILE_BYTES) -> Path:
    """Write the model into a folder, with its weights in a second file if they exceed *max_bytes*.

    The same model gives the same bytes.  Returns the path of the model; *model* may be modified.
    """
    path = folder / MODEL_FILE
    weights = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if weights > max_bytes:
        convert_model_to_external_data(
            model, location=DATA_FILE, size_threshold=EXTERNAL_FROM_BYTES, convert_attribute=False
        )
        onnx.save_model(model, path)
        # It is created with owner-only permissions; it gets those of the model.
        path.with_name(DATA_FILE).chmod(path.stat().st_mode)
    else:
        path.write_bytes(serialized(model))
    return path


def serialized(model: onnx.ModelProto) -> bytes:
    """Serialize a model of less than 2 GiB; the same model gives the same bytes."""
    return bytes(model.SerializeToString(deterministic=True))


def parsed(content: bytes) -> onnx.ModelProto:
    """Parse a model that is one message.  Raises `ExportError`."""
    try:
        return onnx.load_model_from_string(content)
    except DecodeError as error:
        raise ExportError("not an ONNX file") from error
