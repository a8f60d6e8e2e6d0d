"""Minimal ONNX models with the tensors of the model contract."""

from __future__ import annotations

from onnx import ModelProto, TensorProto, helper

UINT8, INT32 = TensorProto.UINT8, TensorProto.INT32
FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16

ENCODER_INPUTS = {"image": (UINT8, ["B", 1024, 1024, 3]), "image_size": (INT32, ["B", 2])}
EMBEDDING = {"image_embedding": (HALF, ["B", 256, 64, 64])}
DECODER_INPUTS = {
    **EMBEDDING,
    "point_coords": (FLOAT, ["B", "P", "N", 2]),
    "point_labels": (FLOAT, ["B", "P", "N"]),
    "mask_input": (FLOAT, ["B", "M", 256, 256]),
}
DECODER_OUTPUTS = {
    "low_res_logits": (FLOAT, ["B", "P", 4, 256, 256]),
    "predicted_iou": (FLOAT, ["B", "P", 4]),
}

Interface = dict[str, tuple[int, list[object]]]


def graph(inputs: Interface, outputs: Interface) -> ModelProto:
    """Return a model that declares these tensors and returns constants."""
    nodes = [
        helper.make_node("Constant", [], [name], value=helper.make_tensor("value", kind, [1], [0]))
        for name, (kind, _) in outputs.items()
    ]
    content = helper.make_graph(nodes, "graph", _values(inputs), _values(outputs))
    return helper.make_model(content, opset_imports=[helper.make_opsetid("", 17)])


def encoder(outputs: Interface = EMBEDDING) -> ModelProto:
    """Return an encoder that follows the contract."""
    return graph(ENCODER_INPUTS, outputs)


def decoder() -> ModelProto:
    """Return a decoder that follows the contract."""
    return graph(DECODER_INPUTS, DECODER_OUTPUTS)


def _values(tensors: Interface) -> list[object]:
    return [
        helper.make_tensor_value_info(name, kind, dims) for name, (kind, dims) in tensors.items()
    ]
