"""Stamps: an additional output of each graph that identifies its encoder.

The output is the digest of the encoder, repeated for each row of the batch.  Its nodes are appended
to the file: concatenated protobuf messages parse as one message with the nodes of both.  The
existing bytes stay unchanged, and the digest of a graph is that of its file without the stamp.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from samserve.export.errors import ExportError
from samserve.export.graph import ANY, GraphTensor, read_interface
from samserve.export.onnx_file import serialized
from samserve.models.digest import (
    DIGEST_OUTPUT,
    DIGEST_WORDS,
    STAMP_KEY,
    digest_words,
    stamp_bytes,
    stamp_note,
)

DIGEST_TENSOR = GraphTensor(DIGEST_OUTPUT, TensorProto.INT32, (ANY, DIGEST_WORDS))
"""The output that a stamp adds to a graph."""


def stamp(path: Path, digest: str) -> None:
    """Append a stamp with the digest to the graph in this file, which must have none."""
    model = onnx.load(path, load_external_data=False)
    with path.open("ab") as file:
        file.write(_stamp(model, digest))


def is_stamped(path: Path, digest: str) -> bool:
    """Return whether the file ends with the stamp of this digest."""
    size = stamp_bytes(path)
    if not size:
        return False
    with path.open("rb") as file:
        file.seek(-size, 2)
        found = file.read()
    return found == _stamp(_strip(onnx.load(path, load_external_data=False)), digest)


def remove_stamp(path: Path) -> None:
    """Restore the graph in this file to its content before it was stamped."""
    size = stamp_bytes(path)
    if size:
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - size)
    model = onnx.load(path, load_external_data=False)
    if _has_digest_output(model):
        # Another program has rewritten the file since it was stamped.
        path.write_bytes(serialized(_strip(model)))


def without_stamp(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model without its stamp; *model* itself if it has none."""
    return _strip(model) if _has_digest_output(model) else model


def _has_digest_output(model: onnx.ModelProto) -> bool:
    return any(output.name == DIGEST_OUTPUT for output in model.graph.output)


def _strip(model: onnx.ModelProto) -> onnx.ModelProto:
    graph = model.graph
    values: Any
    for values in (graph.node, graph.initializer, graph.output):
        kept = [value for value in values if not value.name.startswith(DIGEST_OUTPUT)]
        del values[:]
        values.extend(kept)
    facts = [fact for fact in model.metadata_props if fact.key != STAMP_KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(facts)
    return model


def _stamp(model: onnx.ModelProto, digest: str) -> bytes:
    """Return the stamp: a message that contains only the additions."""
    if _has_digest_output(model):
        raise ExportError(f"the graph already has an output {DIGEST_OUTPUT!r}")
    added = onnx.ModelProto(graph=_graph(model, digest))
    # Last and of a fixed length, so that it is found without parsing the model.
    note = added.metadata_props.add(key=STAMP_KEY, value=stamp_note(digest, 0))
    note.value = stamp_note(digest, len(serialized(added)))
    return serialized(added)


def _graph(model: onnx.ModelProto, digest: str) -> onnx.GraphProto:
    inputs = read_interface(model).inputs
    if not inputs:
        raise ExportError("a graph has no input: it is empty or not a model of samserve")
    first = inputs[0].name
    (value,) = (value for value in model.graph.input if value.name == first)
    batch = value.type.tensor_type.shape.dim[0].dim_param
    words = np.frombuffer(digest_words(digest), dtype=np.int32)

    def part(name: str) -> str:
        return f"{DIGEST_OUTPUT}_{name}"

    def node(kind: str, sources: list[str], name: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(kind, sources, [name], name=name, **attributes)

    graph = onnx.GraphProto()
    graph.initializer.extend(
        [
            helper.make_tensor(part("words"), TensorProto.INT32, [1, DIGEST_WORDS], words),
            helper.make_tensor(part("first"), TensorProto.INT64, [1], [0]),
            helper.make_tensor(part("one"), TensorProto.INT64, [1], [1]),
        ]
    )
    graph.node.extend(
        [
            node("Shape", [first], part("shape")),
            node("Gather", [part("shape"), part("first")], part("batch"), axis=0),
            node("Concat", [part("batch"), part("one")], part("dims"), axis=0),
            node("Expand", [part("words"), part("dims")], DIGEST_OUTPUT),
        ]
    )
    output = helper.make_tensor_value_info(
        DIGEST_OUTPUT, TensorProto.INT32, [batch or None, DIGEST_WORDS]
    )
    graph.output.append(output)
    return graph
