"""A SAM's two graphs as ONNX files that obey the model contract."""

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

from samserve.export.sam.graphs import DecoderGraph, EncoderGraph
from samserve.export.sam.mask_decoder import MASKS
from samserve.export.sam.model import Sam

OPSET = 17
UNCAST = "_float32"
"""Ends the names of the extra outputs of an encoder that is exported for comparison."""

Axes = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Interface:
    """Shapes of tensors by name, in the order of the graph; a word is an axis that stays open."""

    inputs: Mapping[str, Axes]
    outputs: Mapping[str, Axes]


def export_encoder(sam: Sam, *, keep_uncast: bool = False) -> onnx.ModelProto:
    """Trace the image encoder; ``keep_uncast`` adds the embedding in float32 as last outputs.

    The same weights give the same model, under one version of torch.
    """
    size, embedding = sam.config.image_size, _embedding(sam)
    interface = Interface(
        inputs={"image": ("B", size, size, 3), "image_size": ("B", 2)},
        outputs={**embedding, **{name + UNCAST: axes for name, axes in embedding.items()}},
    )
    image = torch.zeros(1, size, size, 3, dtype=torch.uint8)
    image_size = torch.full((1, 2), size, dtype=torch.int32)
    model = trace(EncoderGraph(sam), (image, image_size), interface)
    if not keep_uncast:
        del model.graph.output[len(embedding) :]
    return model


def export_decoder(sam: Sam) -> onnx.ModelProto:
    """Trace prompt encoder and mask decoder as one graph, with B, P, N and M open.

    The same weights give the same model, under one version of torch.
    """
    side = sam.config.mask_size
    interface = Interface(
        inputs={
            **_embedding(sam),
            "point_coords": ("B", "P", "N", 2),
            "point_labels": ("B", "P", "N"),
            "mask_input": ("B", "M", side, side),
        },
        outputs={
            "low_res_logits": ("B", "P", MASKS, side, side),
            "predicted_iou": ("B", "P", MASKS),
        },
    )
    # All open axes differ in the example, so that the trace cannot take one for another.
    example = (
        *(torch.zeros(2, *shape, dtype=torch.float16) for shape in sam.config.embedding.values()),
        torch.zeros(2, 3, 4, 2),
        torch.ones(2, 3, 4),
        torch.zeros(2, 1, side, side),
    )
    return trace(DecoderGraph(sam), example, interface)


def _embedding(sam: Sam) -> dict[str, Axes]:
    return {name: ("B", *shape) for name, shape in sam.config.embedding.items()}


def trace(graph: nn.Module, example: tuple[Tensor, ...], interface: Interface) -> onnx.ModelProto:
    """Trace a graph with an example of its inputs."""
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), warnings.catch_warnings():
        file = Path(folder) / "graph.onnx"
        # Beyond 2 GiB every weight is written into a file of its own; loading gathers them.
        # The TorchScript exporter: its graph runs 1.2 times as fast in ONNX Runtime as that of
        # its successor, which is why it is used although torch announces its end.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", TracerWarning)
        warnings.filterwarnings("ignore", message="Constant folding", category=UserWarning)
        torch.onnx.export(
            graph.eval(),
            example,
            str(file),  # a plain string, else it refuses what exceeds 2 GiB
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
    # The exporter leaves shapes of outputs half open.
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
