"""The shipped decoder can be trained further: it is read back from its graph without a loss."""

from __future__ import annotations

import onnx
import pytest
from samserve.app import default_repository
from samserve.export.errors import ExportError
from samserve.export.onnx_file import serialized
from samserve.export.stamp import without_stamp
from samserve.export.tiny.graphs import decoder_onnx
from samserve.export.tiny.reading import is_tiny_decoder, read_decoder


def _shipped(role: str) -> onnx.ModelProto:
    path = default_repository() / f"sam_tiny_{role}" / "1" / "model.onnx"
    return without_stamp(onnx.load(path))


@pytest.mark.slow
def test_decoder_that_is_read_back_exports_to_the_same_bytes() -> None:
    decoder = _shipped("decoder")

    assert decoder_onnx(read_decoder(decoder)) == serialized(decoder)


def test_another_graph_is_not_read_as_a_decoder() -> None:
    encoder = _shipped("encoder")

    assert not is_tiny_decoder(encoder)
    with pytest.raises(ExportError, match="not a decoder of sam_tiny"):
        read_decoder(encoder)


def test_decoder_without_one_of_its_weights_is_refused() -> None:
    decoder = _shipped("decoder")
    kept = [each for each in decoder.graph.initializer if "join32.second" not in each.name]
    del decoder.graph.initializer[:]
    decoder.graph.initializer.extend(kept)

    with pytest.raises(ExportError, match="not a decoder of sam_tiny"):
        read_decoder(decoder)
