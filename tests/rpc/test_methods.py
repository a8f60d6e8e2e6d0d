"""The rows of the methods agree with the protocol."""

from __future__ import annotations

import pytest
from samserve.calls.methods import METHODS
from samserve.rpc import methods
from samserve.v1 import samserve_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["SegmentationService"]


def test_every_method_has_a_row_that_matches_the_protocol() -> None:
    rows = {row.name: (row.streams, row.client_streams, row.small_request) for row in METHODS}

    assert rows == {
        method.name: (
            method.server_streaming,
            method.client_streaming,
            not {"image", "chunk"} & set(method.input_type.fields_by_name),
        )
        for method in SERVICE.methods
    }


def test_method_without_a_row_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "METHODS", METHODS[1:])

    with pytest.raises(KeyError, match=METHODS[0].name):
        methods.served_methods()
