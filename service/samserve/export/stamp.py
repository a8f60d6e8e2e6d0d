"""Making a graph say, with every answer, which encoder it belongs to.

A graph gets a further output, the digest of that encoder repeated for each row of the batch, by
nodes that are added at the end of its file: messages of protobuf that lie one after the other are
one message, with the nodes of both.  What was there stays as it was, byte for byte, and the digest
of a graph is that of its file without the added part.
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
"""What a stamp adds to the interface of a graph."""


def stamp(path: Path, digest: str) -> None:
    """Have the graph in this file answer with the digest too; it must not do so yet."""
    model = onnx.load(path, load_external_data=False)
    with path.open("ab") as file:
        file.write(_stamp(model, digest))


def is_stamped(path: Path, digest: str) -> bool:
    """Tell whether the graph in this file says this digest, and the file ends with that."""
    size = stamp_bytes(path)
    if not size:
        return False
    with path.open("rb") as file:
        file.seek(-size, 2)
        found = file.read()
    return found == _stamp(_bare(onnx.load(path, load_external_data=False)), digest)


def remove_stamp(path: Path) -> None:
    """Have the graph in this file be as before it was stamped."""
    size = stamp_bytes(path)
    if size:
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - size)
    model = onnx.load(path, load_external_data=False)
    if _names_digest(model):
        # Another program has written the file since it was stamped.
        path.write_bytes(serialized(_bare(model)))


def without_stamp(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model that says no digest; *model* itself if it does not."""
    return _bare(model) if _names_digest(model) else model


def _names_digest(model: onnx.ModelProto) -> bool:
    return any(output.name == DIGEST_OUTPUT for output in model.graph.output)


def _bare(model: onnx.ModelProto) -> onnx.ModelProto:
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
    """The added part: a message with nothing but what is added."""
    if _names_digest(model):
        raise ExportError(f"the graph has an output {DIGEST_OUTPUT!r} already")
    added = onnx.ModelProto(graph=_graph(model, digest))
    # Of a fixed length, and last: it is found without reading the model.
    note = added.metadata_props.add(key=STAMP_KEY, value=stamp_note(digest, 0))
    note.value = stamp_note(digest, len(serialized(added)))
    return serialized(added)


def _graph(model: onnx.ModelProto, digest: str) -> onnx.GraphProto:
    inputs = read_interface(model).inputs
    if not inputs:
        raise ExportError("a graph has no input: it is empty, or no model of samserve")
    given = inputs[0].name
    (value,) = (value for value in model.graph.input if value.name == given)
    batch = value.type.tensor_type.shape.dim[0].dim_param
    words = np.frombuffer(digest_words(digest), dtype=np.int32)

    def part(name: str) -> str:
        return f"{DIGEST_OUTPUT}_{name}"

    def node(kind: str, taken: list[str], name: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(kind, taken, [name], name=name, **attributes)

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
            node("Shape", [given], part("shape")),
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
