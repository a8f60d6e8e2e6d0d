"""The two graphs of a model as ONNX models that follow the model contract."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning

from samserve.export.families.base import Network

OPSET = 17
UNCAST = "_float32"
"""Suffix of the additional outputs of an encoder that is exported for a comparison."""

Axes = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Interface:
    """Shapes of tensors by name, in the order of the graph; a string is a dynamic axis."""

    inputs: Mapping[str, Axes]
    outputs: Mapping[str, Axes]


def export_encoder(network: Network, *, keep_uncast: bool = False) -> onnx.ModelProto:
    """Trace the image encoder; ``keep_uncast`` appends the embedding in float32 to the outputs.

    With one version of torch, the same weights give the same model.
    """
    size, embedding = network.shapes.image_size, _embedding(network)
    inputs: dict[str, Axes] = {"image": ("B", size, size, 3)}
    example = [torch.zeros(1, size, size, 3, dtype=torch.uint8)]
    if not network.family.fills_frame:
        inputs["image_size"] = ("B", 2)
        example.append(torch.full((1, 2), size, dtype=torch.int32))
    uncast = {name + UNCAST: axes for name, axes in embedding.items()}
    interface = Interface(inputs, {**embedding, **uncast})
    model = trace(network.encoder_graph(), tuple(example), interface)
    if not keep_uncast:
        del model.graph.output[len(embedding) :]
    return model


def export_decoder(network: Network, graph: nn.Module | None = None) -> onnx.ModelProto:
    """Trace prompt encoder and mask decoder as one graph, with dynamic axes B, P, N and M.

    *graph* has other weights than the checkpoint; None for those of the checkpoint.

    With one version of torch, the same weights give the same model.
    """
    side, masks = network.shapes.mask_size, network.family.mask_tokens
    outputs: dict[str, Axes] = {
        "low_res_logits": ("B", "P", masks, side, side),
        "predicted_iou": ("B", "P", masks),
    }
    if network.family.object_score:
        outputs["object_score_logits"] = ("B", "P", 1)
    interface = Interface(
        inputs={
            **_embedding(network),
            "point_coords": ("B", "P", "N", 2),
            "point_labels": ("B", "P", "N"),
            "mask_input": ("B", "M", side, side),
            "iou_threshold": ("B", masks),
        },
        outputs=outputs,
    )
    # All dynamic axes differ in the example, so that the trace cannot confuse them.
    example = (
        *(torch.zeros(2, *axes, dtype=torch.float16) for axes in network.shapes.embedding.values()),
        torch.zeros(2, 3, 4, 2),
        torch.ones(2, 3, 4),
        torch.zeros(2, 1, side, side),
        torch.full((2, masks), -torch.inf),
    )
    return trace(graph or network.decoder_graph(), example, interface)


def _embedding(network: Network) -> dict[str, Axes]:
    return {name: ("B", *shape) for name, shape in network.shapes.embedding.items()}


def trace(graph: nn.Module, example: tuple[Tensor, ...], interface: Interface) -> onnx.ModelProto:
    """Trace a graph with example inputs."""
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), warnings.catch_warnings():
        file = Path(folder) / "graph.onnx"
        # Beyond 2 GiB every weight is written to a separate file; loading merges them.
        # The TorchScript exporter is used although torch deprecates it: its graph runs 1.2 times as
        # fast in ONNX Runtime as that of its successor.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", TracerWarning)
        warnings.filterwarnings("ignore", message="Constant folding", category=UserWarning)
        torch.onnx.export(
            graph.eval(),
            example,
            str(file),  # a string, else models beyond 2 GiB are rejected
            dynamo=False,
            opset_version=OPSET,
            input_names=list(interface.inputs),
            output_names=list(interface.outputs),
            dynamic_axes={
                name: {axis: dim for axis, dim in enumerate(axes) if isinstance(dim, str)}
                for name, axes in {**interface.inputs, **interface.outputs}.items()
            },
        )
        model = onnx.load(file)
    # The exporter leaves some dimensions of the outputs undefined.
    for output in model.graph.output:
        _declare(output, list(interface.outputs[output.name]))
    return model


def _declare(value: onnx.ValueInfoProto, axes: Sequence[str | int]) -> None:
    shape = value.type.tensor_type.shape
    del shape.dim[:]
    for axis in axes:
        dim = shape.dim.add()
        if isinstance(axis, int):
            dim.dim_value = axis
        else:
            dim.dim_param = axis
