"""Versions of the default model with distinguishable masks.

The decoder of a version has the logits of the default model multiplied by `SIGNS`, so that the
masks of one version are the complement of those of the other, and one predicted IoU for all masks.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
from onnx import helper, numpy_helper
from samserve.export.stamp import remove_stamp, stamp
from samserve.export.triton_repository import Description, write_bundle
from samserve.models.digest import bundle_digest, graph_digests
from samserve.models.repository import discover

from harness.triton.environment import ROOT
from tests.engines import weights

NAME = "sam_tiny"
SIGNS = {1: 1.0, 2: -1.0, 3: 1.0}


def iou_of(version: int) -> float:
    """Return the predicted IoU of every mask of a version."""
    return 0.9 + version / 100


def write_small(repository: Path, version: int, *, name: str = NAME) -> str:
    """Write a model that takes no time, with constant masks; return its digest."""
    number = iou_of(version)
    graphs = {
        "encoder": weights.ENCODER.replace("VERSION", "1"),
        "decoder": weights.DECODER.replace("one = {1}", f"one = {{{SIGNS[version]}}}")
        .replace("versions = Concat", "both = Concat")
        .replace("predicted_iou = Mul (versions, hundredth)", _CONSTANT_IOU)
        .replace("float hundredth = {0.01}", f"float zero = {{0.0}}, float number = {{{number}}}")
        .replace("int64[3] number", "int64[3] to_number")
        .replace("(wide, number)", "(wide, to_number)")
        .replace("VERSION", str(version)),
    }
    parsed = {role: onnx.parser.parse_model(text) for role, text in graphs.items()}
    write_bundle(repository, name, parsed, Description(f"version {version}"))
    return discover(repository)[0].info.digest


_CONSTANT_IOU = """nothing = Mul (both, zero)
  predicted_iou = Add (nothing, number)"""


def write_model(repository: Path, version: int, *, encoder: int = 1, name: str = NAME) -> str:
    """Write a model and return its digest; another *encoder* has other embeddings."""
    for role in ("encoder", "decoder"):
        folder = repository / f"{name}_{role}"
        shutil.copytree(ROOT / "model_repository" / f"{NAME}_{role}", folder)
    paths = {
        role: repository / f"{name}_{role}" / "1" / "model.onnx" for role in ("encoder", "decoder")
    }
    for path in paths.values():
        remove_stamp(path)
    model = onnx.load(paths["decoder"])
    _append(model, "low_res_logits", "Mul", SIGNS[version])
    _append(model, "predicted_iou", "Mul", 0.0)
    _append(model, "predicted_iou", "Add", iou_of(version))
    onnx.save(model, paths["decoder"])
    if encoder != 1:
        model = onnx.load(paths["encoder"])
        _append(model, "image_embedding", "Mul", 1 + encoder / 1024)
        onnx.save(model, paths["encoder"])
    digests = graph_digests(paths)
    for path in paths.values():
        stamp(path, digests["encoder"])
    return declare(repository, name, digests)


def declare(repository: Path, name: str, digests: Mapping[str, str]) -> str:
    """Write the digests of the graphs into the configurations; return that of the model."""
    digest = bundle_digest(digests)
    for role in digests:
        config = repository / f"{name}_{role}" / "config.pbtxt"
        text = config.read_text().replace(f'"{NAME}', f'"{name}')
        text = re.sub(r'("samserve\.digest"[^"]*)"\w+"', rf'\1"{digest}"', text)
        text = re.sub(r'("samserve\.encoder_digest"[^"]*)"\w+"', rf'\1"{digests["encoder"]}"', text)
        config.write_text(text)
    return digest


def _append(model: onnx.ModelProto, output: str, operator: str, number: float) -> None:
    """Apply an operator with a constant to an output of the graph."""
    graph, before = model.graph, f"{output}_before_{operator}"
    for node in graph.node:
        for names in (node.input, node.output):
            for index, each in enumerate(names):
                if each == output:
                    names[index] = before
    (declared,) = (each for each in graph.output if each.name == output)
    kind = helper.tensor_dtype_to_np_dtype(declared.type.tensor_type.elem_type)
    constant = numpy_helper.from_array(np.array(number, dtype=kind), f"{before}_constant")
    graph.initializer.append(constant)
    graph.node.append(helper.make_node(operator, [before, constant.name], [output]))
