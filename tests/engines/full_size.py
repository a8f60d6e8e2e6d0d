"""A model of each family with the published tensor sizes, whose graphs compute almost nothing.

A mask is a disc around the first point of its prompt.  Its radius depends on the first and the last
element of every tensor of the embedding, and these on the colours of the image: a mask is wrong if
the embedding is that of another image, incomplete, or its tensors are exchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from onnx import ModelProto, numpy_helper, parser
from samserve.export.triton_repository import Description, write_bundle
from samserve.models import families
from samserve.models.families.base import Family

Shape = tuple[int, int, int]

EMBEDDINGS: Mapping[str, Mapping[str, Shape]] = {
    "sam1": {"image_embedding": (256, 64, 64)},
    "sam_hq": {"image_embedding": (256, 64, 64), "hq_features": (32, 256, 256)},
    "sam2": {
        "high_res_0": (32, 256, 256),
        "high_res_1": (64, 128, 128),
        "image_embedding": (256, 64, 64),
    },
}
"""The tensors of each family's embedding, in float16: 2, 6 and 8 MiB."""

_FAMILIES: Mapping[str, Family] = {
    each.name: each for each in (families.SAM1, families.SAM2, families.SAM_HQ)
}
_STABILITY = {"multimask_stability_delta": "0.05", "multimask_stability_thresh": "0.98"}

_ENCODER = """
<ir_version: 8, opset_import: ["" : 17]>
encoder (INPUTS) => (OUTPUTS)
<
  int64[2] from = {0, 0}, int64[2] to = {1024, 1024}, int64[2] rows_columns = {1, 2},
  int64[2] step = {64, 64}, int64[1] first = {0}, float full = {255}
>
{
  sampled = Slice (image, from, to, rows_columns, step)
  pixels = Cast <to = 1> (sampled)
  mean = ReduceMean <axes = [1, 2], keepdims = 1> (pixels)
  colours = Div (mean, full)
  red, green, blue = Split <axis = 3> (colours)
  shape = Shape (image)
  batch = Gather (shape, first)
  USED
  TENSORS
}
"""
_TENSOR = """
  NAME_levels = Mul (COLOUR, NAME_ramp)
  NAME_halves = Cast <to = 10> (NAME_levels)
  NAME_dims = Concat <axis = 0> (batch, NAME_shape)
  NAME = Expand (NAME_halves, NAME_dims)
"""
_DECODER = """
<ir_version: 8, opset_import: ["" : 17]>
decoder (INPUTS) => (OUTPUTS)
<
  float quarter = {0.25}, float start = {0.5}, float end = {256.5}, float one = {1},
  float base = {20}, int64[3] begin = {0, 0, 0}, int64[3] corner = {1, 1, 1},
  int64[3] last = {-1, -1, -1}, int64[3] beyond = {4096, 4096, 4096}, int64[3] inner = {1, 2, 3},
  int64[1] first = {0}, int64[1] axis_2 = {2}, int64[1] axis_3 = {3}, int64[2] axes_0_1 = {0, 1}
>
{
  RADII
  point = Gather <axis = 2> (point_coords, first)
  scaled = Mul (point, quarter)
  x0, y0 = Split <axis = 3> (scaled)
  grid = Range (start, end, one)
  columns = Unsqueeze (grid, axes_0_1)
  rows = Unsqueeze (columns, axis_3)
  dx = Sub (grid, x0)
  dy = Sub (rows, y0)
  xx = Mul (dx, dx)
  yy = Mul (dy, dy)
  square = Add (xx, yy)
  distance = Sqrt (square)
  distances = Unsqueeze (distance, axis_2)
  discs = Sub (SUM, distances)
  low_res_logits = Add (discs, growth)
  labels_shape = Shape <start = 0, end = 2> (point_labels)
  mask_shape = Shape (mask_input)
  iou_shape = Concat <axis = 0> (labels_shape, tokens)
  predicted_iou = Expand (ious, iou_shape)
  SCORE
}
"""
_RADIUS = """
  NAME_low = Slice (NAME, begin, corner, inner)
  NAME_high = Slice (NAME, last, beyond, inner)
  NAME_sum = Add (NAME_low, NAME_high)
  NAME_wide = Cast <to = 1> (NAME_sum)
  NAME_weighted = Mul (NAME_wide, NAME_weight)
  NAME_column = Unsqueeze (NAME_weighted, axis_3)
  NAME_total = Add (PREVIOUS, NAME_column)
"""
_SCORE = """
  one_score = Constant <value_ints = [1]> ()
  spatial = Constant <value_ints = [2, 3]> ()
  score_shape = Concat <axis = 0> (labels_shape, one_score)
  flat = Squeeze (SUM, spatial)
  object_score_logits = Expand (flat, score_shape)
"""


def write_models(repository: Path, *names: str) -> None:
    """Add a model of each of the named families, called as its family, to a repository."""
    for name in names or tuple(EMBEDDINGS):
        family = _FAMILIES[name]
        models = {"encoder": _encoder(family), "decoder": _decoder(family)}
        parameters = _STABILITY if family.name == "sam2" else {}
        description = Description("computes almost nothing", family, parameters)
        write_bundle(repository, name, models, description)


def _tensors(family: Family) -> str:
    shapes = EMBEDDINGS[family.name].items()
    return ", ".join(f"float16[B,{c},{h},{w}] {name}" for name, (c, h, w) in shapes)


def _encoder(family: Family) -> ModelProto:
    inputs, used = "uint8[B,1024,1024,3] image", ""
    if not family.fills_frame:
        inputs, used = f"{inputs}, int32[B,2] image_size", "size_shape = Shape (image_size)"
    shapes = EMBEDDINGS[family.name]
    tensors = "".join(
        _TENSOR.replace("NAME", name).replace("COLOUR", colour)
        for name, colour in zip(shapes, ("red", "green", "blue"), strict=False)
    )
    text = _ENCODER.replace("INPUTS", inputs).replace("OUTPUTS", _tensors(family))
    constants: dict[str, np.ndarray] = {}
    for name, shape in shapes.items():
        constants[f"{name}_shape"] = np.array(shape, np.int64)
        ramp = np.linspace(0.25, 1, shape[0], dtype=np.float32)
        constants[f"{name}_ramp"] = ramp.reshape(1, -1, 1, 1)
    return _model(text.replace("USED", used).replace("TENSORS", tensors), constants)


def _decoder(family: Family) -> ModelProto:
    tokens = family.mask_tokens
    inputs = (
        f"{_tensors(family)}, float[B,P,N,2] point_coords, float[B,P,N] point_labels, "
        "float[B,M,256,256] mask_input"
    )
    outputs = f"float[B,P,{tokens},256,256] low_res_logits, float[B,P,{tokens}] predicted_iou"
    if family.object_score:
        outputs += ", float[B,P,1] object_score_logits"
    radii, previous = "", "base"
    constants: dict[str, np.ndarray] = {
        "growth": np.arange(tokens, dtype=np.float32).reshape(1, 1, -1, 1, 1),
        "ious": np.linspace(0.95, 0.9, tokens, dtype=np.float32),
        "tokens": np.array([tokens], np.int64),
    }
    for number, name in enumerate(EMBEDDINGS[family.name]):
        radii += _RADIUS.replace("NAME", name).replace("PREVIOUS", previous)
        previous = f"{name}_total"
        constants[f"{name}_weight"] = np.array(12.0 + 7 * number, np.float32)
    score = _SCORE if family.object_score else ""
    text = _DECODER.replace("INPUTS", inputs).replace("OUTPUTS", outputs)
    text = text.replace("RADII", radii).replace("SCORE", score).replace("SUM", previous)
    return _model(text, constants)


def _model(text: str, constants: Mapping[str, np.ndarray]) -> ModelProto:
    model = parser.parse_model(text)
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    return model
