"""Reads the decoder of `sam_tiny` back from its exported graph.

The exported graph has the weights of `FoldedDecoder` under their names.  Each is a rearrangement of
those of `MaskDecoder`, or their product with a power of two, so that the way back is exact; only
where it adds two weights, one of them is known but for a rounding.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from samserve.export.errors import ExportError
from samserve.export.tiny.decoder import BASIS, HEADS, LOGIT_GAIN, SUBCELLS, MaskDecoder
from samserve.export.tiny.folded_maps import FLAGS
from samserve.export.tiny.iou import TOKENS, MaskIouHead

_PREFIX = "decoder."
_SAME = (
    *("feature", "down32", "down16", "focus", "context", "up32", "up64"),
    *("iou_head.token", "iou_head.hidden", "iou_head.out"),
)
"""Parts whose weights are unchanged."""
_BLOCKS = ("block32", "block16", "wide16", "join32", "join64")
_LINEAR = {"iou_head.hidden": "hidden", "iou_head.last": "third", "iou_head.out": "out"}
"""Layers whose weights have no name in the graph, and their names in `MaskIouHead`."""


def is_tiny_decoder(model: onnx.ModelProto) -> bool:
    """Return whether the graph is an exported decoder of this kind."""
    names = {each.name for each in model.graph.initializer}
    return {f"{_PREFIX}maps.query_weight", f"{_PREFIX}iou_head.pool_mask.see.weight"} <= names


def read_decoder(model: onnx.ModelProto) -> MaskDecoder:
    """Return the decoder in evaluation mode.  Raises `ExportError` for another graph."""
    weights = {
        each.name.removeprefix(_PREFIX): torch.from_numpy(numpy_helper.to_array(each).copy())
        for each in model.graph.initializer
    }
    decoder = MaskDecoder(MaskIouHead)
    try:
        state = _state(weights, _matrices(model, weights))
        decoder.load_state_dict(state)
    except (KeyError, RuntimeError) as error:
        raise ExportError("the graph is not a decoder of sam_tiny") from error
    return decoder.eval()


def _state(weights: Mapping[str, Tensor], matrices: Mapping[str, Tensor]) -> dict[str, Tensor]:
    state = {name: value for name, value in weights.items() if name.startswith(_SAME)}
    for part in ("key.weight", "key.bias"):
        state[part] = weights[f"maps.{part}"]
    state["query.weight"] = weights["maps.query_weight"].t()[:, :, None, None]
    state["query.bias"] = weights["maps.query_bias"]
    state["fuse.weight"] = restored(weights["fuse.weight"])
    state["fuse.bias"] = weights["fuse.bias"]
    for block in _BLOCKS:
        for name in ("first.weight", "second.weight", "second.bias"):
            state[f"{block}.{name}"] = weights[f"{block}.{name}"]
        state[f"{block}.norm.weight"] = weights[f"{block}.affine.weight"].flatten()
        state[f"{block}.norm.bias"] = weights[f"{block}.affine.bias"]
    for name in ("weight", "bias"):
        state[f"basis.{name}"] = weights[f"basis.{name}"] / LOGIT_GAIN
    return state | _mask_head(weights) | _iou_head(weights, matrices)


def _mask_head(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    parts = {"own": (SUBCELLS, LOGIT_GAIN), "mix": (BASIS, 1.0)}
    rows, biases = [], []
    for part, (count, gain) in parts.items():
        fine, maps = weights[f"{part}_fine.weight"], restored(weights[f"{part}_maps.weight"])
        rows.append((torch.cat([fine, maps], 1) / gain).reshape(TOKENS, count, -1, 1, 1))
        biases.append((weights[f"{part}_fine.bias"] / gain).reshape(TOKENS, count))
    return {
        "mask_head.weight": torch.cat(rows, 1).flatten(0, 1),
        "mask_head.bias": torch.cat(biases, 1).flatten(),
    }


def _iou_head(weights: Mapping[str, Tensor], matrices: Mapping[str, Tensor]) -> dict[str, Tensor]:
    state = {}
    for folded, plain in _LINEAR.items():
        state[f"iou_head.{plain}.weight"] = matrices[folded]
        state[f"iou_head.{plain}.bias"] = weights[f"{folded}.bias"]
    pool = "iou_head.pool_mask."
    for name in ("see.weight", "see.bias", "second.weight", "second.bias"):
        state[f"iou_head.{name}"] = weights[pool + name]
    planes = weights[f"{pool}first_mask.weight"]
    uncertain = planes[:, 2:3] / -4
    # In float64, and rounded once: the sum that the export makes of it is then the same again.
    inside = (planes[:, :1].double() - 4 * uncertain.double()).float()
    selected = weights[f"{pool}first_seen.weight"]
    state["iou_head.first.weight"] = torch.cat([inside, uncertain, selected], 1)
    state["iou_head.first.bias"] = weights[f"{pool}first_mask.bias"]
    return state


def restored(weight: Tensor) -> Tensor:
    """Undo `folded_maps.arrange`: weights ``[O,56,1,1]`` to ``[O,53,1,1]``."""
    points, others, flag, _, masks = weight.split([2 * HEADS, 20, 1, FLAGS - 1, 16], 1)
    foreground, background = points.reshape(len(weight), HEADS, 2, 1, 1).unbind(2)
    return torch.cat([foreground, background, others, flag, masks], 1)


def _matrices(model: onnx.ModelProto, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of linear layers: those multiplied where their bias is added next."""
    products = {node.output[0]: node for node in model.graph.node if node.op_type == "MatMul"}
    layers = {f"{_PREFIX}{layer}.bias": layer for layer in _LINEAR}
    found = {}
    for node in model.graph.node:
        factors = [products[name].input[1] for name in node.input if name in products]
        biases = [layers[name] for name in node.input if name in layers]
        if factors and biases:
            found[biases[0]] = weights[factors[0].removeprefix(_PREFIX)].t().contiguous()
    return found
