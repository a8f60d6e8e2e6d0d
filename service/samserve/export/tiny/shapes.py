"""Shapes in an exported graph that let ONNX Runtime fuse more of it."""

from __future__ import annotations

import onnx
from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

IMAGE_RANK = 4


def declare_batches(model: onnx.ModelProto) -> onnx.ModelProto:
    """Declare the shapes of feature maps whose batch axis is computed, such as ``[B*P,C,h,w]``.

    ONNX Runtime adds up features within a convolution only if it knows that both have equal shapes.
    Its own inference loses a batch axis that a reshape computes.  Returns *model*, modified.
    """
    inferred = SymbolicShapeInference.infer_shapes(model, auto_merge=True)
    names: dict[str, str] = {}
    del model.graph.value_info[:]
    for value in inferred.graph.value_info:
        axes = value.type.tensor_type.shape.dim
        if len(axes) != IMAGE_RANK or not axes[0].dim_param:
            continue
        if not all(axis.HasField("dim_value") for axis in axes[1:]):
            continue
        # Names of axes contain those of nodes; short ones say that they are equal, no more.
        axes[0].dim_param = names.setdefault(axes[0].dim_param, f"batch_{len(names)}")
        model.graph.value_info.append(value)
    return model
