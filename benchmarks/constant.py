"""A pair of models that compute next to nothing, so that what is left is everything else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper
from samserve.export.triton_repository import Description, write_bundle

MODEL = "constant"
SIDE, GRID, CHANNELS, MASK = 1024, 64, 256, 256
_FP16, _FP32 = TensorProto.FLOAT16, TensorProto.FLOAT


def write_constant_pair(repository: Path) -> None:
    """Add the pair, and a pair whose embedding is float32, to a repository."""
    for name, dtype in ((MODEL, _FP16), (f"{MODEL}_fp32", _FP32)):
        models = {"encoder": _encoder(dtype), "decoder": _decoder(dtype)}
        write_bundle(repository, name, models, Description("computes nothing"))


def _encoder(dtype: int) -> ModelProto:
    """Answer the same embedding for every image."""
    nodes = [
        helper.make_node("Shape", ["image_size"], ["size_shape"]),
        helper.make_node("Gather", ["size_shape", "first"], ["batch"]),
        helper.make_node("Concat", ["batch", "embedding_dims"], ["shape"], axis=0),
        helper.make_node("Shape", ["image"], ["image_shape"]),
        helper.make_node("Expand", ["zero", "shape"], ["wide"]),
        helper.make_node("Cast", ["wide"], ["image_embedding"], to=dtype),
    ]
    return _model(
        nodes,
        inputs={
            "image": (TensorProto.UINT8, ["B", SIDE, SIDE, 3]),
            "image_size": (TensorProto.INT32, ["B", 2]),
        },
        outputs={"image_embedding": (dtype, ["B", CHANNELS, GRID, GRID])},
        constants={
            "first": np.array([0]),
            "embedding_dims": np.array([CHANNELS, GRID, GRID]),
            "zero": np.zeros((1, 1, 1, 1), dtype=np.float32),
        },
    )


def _decoder(dtype: int) -> ModelProto:
    """Answer a fixed disc for every prompt."""
    grid = np.arange(MASK, dtype=np.float32) - MASK / 2
    disc = (60 - np.hypot(grid[:, None], grid))[None, None, None]
    nodes = [
        helper.make_node("Shape", ["point_labels"], ["labels_shape"]),
        helper.make_node("Gather", ["labels_shape", "first_two"], ["prompts"]),
        helper.make_node("Concat", ["prompts", "logits_dims"], ["logits_shape"], axis=0),
        helper.make_node("Concat", ["prompts", "iou_dims"], ["iou_shape"], axis=0),
        helper.make_node("Expand", ["disc", "logits_shape"], ["low_res_logits"]),
        helper.make_node("Expand", ["iou", "iou_shape"], ["predicted_iou"]),
        # Inputs of a graph must be used by it.
        *(
            helper.make_node("Shape", [name], [f"{name}_shape"])
            for name in ("image_embedding", "point_coords", "mask_input")
        ),
    ]
    return _model(
        nodes,
        inputs={
            "image_embedding": (dtype, ["B", CHANNELS, GRID, GRID]),
            "point_coords": (_FP32, ["B", "P", "N", 2]),
            "point_labels": (_FP32, ["B", "P", "N"]),
            "mask_input": (_FP32, ["B", "M", MASK, MASK]),
        },
        outputs={
            "low_res_logits": (_FP32, ["B", "P", 4, MASK, MASK]),
            "predicted_iou": (_FP32, ["B", "P", 4]),
        },
        constants={
            "first_two": np.array([0, 1]),
            "logits_dims": np.array([4, MASK, MASK]),
            "iou_dims": np.array([4]),
            "disc": disc.astype(np.float32),
            "iou": np.full((1, 1, 1), 0.9, dtype=np.float32),
        },
    )


def _model(
    nodes: list[object],
    inputs: dict[str, tuple[int, list[str | int]]],
    outputs: dict[str, tuple[int, list[str | int]]],
    constants: dict[str, np.ndarray],
) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "constant",
        [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
        [helper.make_tensor_value_info(name, *kind) for name, kind in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
