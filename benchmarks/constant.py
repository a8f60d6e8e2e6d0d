"""A pair of models that compute almost nothing, to measure the cost of everything else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import ModelProto, numpy_helper, parser
from samserve.export.triton_repository import Description, write_bundle

MODEL = "constant"

_ENCODER = """
<ir_version: 8, opset_import: ["" : 17]>
constant (uint8[B, 1024, 1024, 3] image, int32[B, 2] image_size)
    => (DTYPE[B, 256, 64, 64] image_embedding)
<int64[1] first = {0}, int64[3] embedding_dims = {256, 64, 64}, DTYPE[1, 1, 1, 1] zero = {0}> {
    size_shape = Shape(image_size)
    batch = Gather(size_shape, first)
    shape = Concat<axis = 0>(batch, embedding_dims)
    image_shape = Shape(image)
    image_embedding = Expand(zero, shape)
}
"""
"""Returns the same embedding for every image.  It uses all inputs, because a graph must."""

_DECODER = """
<ir_version: 8, opset_import: ["" : 17]>
constant (
    DTYPE[B, 256, 64, 64] image_embedding, float[B, P, N, 2] point_coords,
    float[B, P, N] point_labels, float[B, M, 256, 256] mask_input
) => (float[B, P, 4, 256, 256] low_res_logits, float[B, P, 4] predicted_iou)
<int64[2] first_two = {0, 1}, int64[3] logits_dims = {4, 256, 256}, int64[1] iou_dims = {4},
 float[1, 1, 1] iou = {0.9}> {
    labels_shape = Shape(point_labels)
    prompts = Gather(labels_shape, first_two)
    logits_shape = Concat<axis = 0>(prompts, logits_dims)
    iou_shape = Concat<axis = 0>(prompts, iou_dims)
    low_res_logits = Expand(disc, logits_shape)
    predicted_iou = Expand(iou, iou_shape)
    embedding_shape = Shape(image_embedding)
    coords_shape = Shape(point_coords)
    mask_shape = Shape(mask_input)
}
"""
"""Returns a fixed disc for every prompt."""


def write_constant_pair(repository: Path) -> None:
    """Add the pair, and a pair with a float32 embedding, to a repository."""
    for name, dtype in ((MODEL, "float16"), (f"{MODEL}_fp32", "float")):
        models = {"encoder": _model(_ENCODER, dtype), "decoder": _decoder(dtype)}
        write_bundle(repository, name, models, Description("computes nothing"))


def _decoder(dtype: str) -> ModelProto:
    model = _model(_DECODER, dtype)
    grid = np.arange(256, dtype=np.float32) - 128
    disc = (60 - np.hypot(grid[:, None], grid))[None, None, None].astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(disc, "disc"))
    return model


def _model(text: str, dtype: str) -> ModelProto:
    return parser.parse_model(text.replace("DTYPE", dtype))
