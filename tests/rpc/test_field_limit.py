"""Requests are measured before anything is made of them."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from samserve.errors import InvalidRequest
from samserve.rpc import field_limit
from samserve.settings import LimitSettings
from samserve.v1 import samserve_pb2 as pb

MOST_FIELDS = field_limit.max_fields(LimitSettings())


def parse(kind: Any, data: bytes) -> Any:
    return field_limit.parse(kind, data, MOST_FIELDS)


def test_a_large_request_in_order_is_read_as_protobuf_reads_it() -> None:
    request = pb.PredictRequest(
        image=pb.Image(encoded=bytes(1 << 20)),
        prompts=[
            pb.Prompt(
                points=[pb.Point(x=n, y=1.5, label=1)] * 64,
                box=pb.Box(x_min=1, y_min=1, x_max=2, y_max=2),
            )
            for n in range(256)
        ],
        model="m",
    )
    request.prompts[0].mask.low_res_logits = bytes(4 * 256 * 256)

    assert parse(pb.PredictRequest, request.SerializeToString()) == request


def test_the_largest_grids_are_read() -> None:
    grid = pb.PointGrid(points=[pb.NormalizedPoint(x=0.5, y=0.5)] * 128**2)
    request = pb.AutoMaskRequest(options=pb.AutoMaskOptions(point_grids=[grid] * 4))

    assert parse(pb.AutoMaskRequest, request.SerializeToString()) == request


@pytest.mark.parametrize(
    "data",
    [
        b"\x22\x00" * (2 << 20),  # empty prompts
        b"\x22\x80\x80\x80\x02" + b"\x0a\x00" * (2 << 20),  # empty points of one prompt
        b"\x08\x00" * (2 << 20),  # a field that is not known
    ],
    ids=["prompts", "points", "unknown"],
)
def test_millions_of_fields_are_refused_before_they_take_memory(data: bytes) -> None:
    most = 20_000  # counting goes slowly while memory is traced
    tracemalloc.start()
    with pytest.raises(InvalidRequest, match=f"more than {most} fields"):
        field_limit.parse(pb.PredictRequest, data, most)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 1 << 20


def test_a_group_holds_whatever_it_likes() -> None:
    image = pb.EmbedRequest(image=pb.Image(encoded=bytes(1 << 17))).SerializeToString()
    # Field 1 would be a message outside of a group.
    strange = b"\x7b" + b"\x0a\x02\xff\xff" + b"\x7c"

    assert parse(pb.EmbedRequest, image + strange).image.encoded == bytes(1 << 17)


@pytest.mark.parametrize(
    "tail", [b"\xff", b"\x0a\xff", b"\x0f", b"\x08" + b"\xff" * 11, b"\x0a\xff\xff\xff\x7f"]
)
def test_large_bytes_that_are_no_request(tail: bytes) -> None:
    image = pb.EmbedRequest(image=pb.Image(encoded=bytes(1 << 17))).SerializeToString()

    with pytest.raises(InvalidRequest, match="is no EmbedRequest"):
        parse(pb.EmbedRequest, image + tail)
