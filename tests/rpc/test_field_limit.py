"""Fields of a request are counted before it is parsed."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from samserve.errors import InvalidRequest
from samserve.rpc import field_limit
from samserve.settings import LimitSettings
from samserve.v1 import samserve_pb2 as pb

MAX_FIELDS = field_limit.max_fields(LimitSettings())


def parse(kind: Any, data: bytes) -> Any:
    return field_limit.parse(kind, data, MAX_FIELDS)


def test_large_valid_request_is_parsed() -> None:
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


def test_largest_point_grids_are_parsed() -> None:
    grid = pb.PointGrid(points=[pb.NormalizedPoint(x=0.5, y=0.5)] * 128**2)
    request = pb.AutoMaskRequest(options=pb.AutoMaskOptions(point_grids=[grid] * 4))

    assert parse(pb.AutoMaskRequest, request.SerializeToString()) == request


def test_most_excluded_masks_are_parsed_without_any_other_limit() -> None:
    limits = LimitSettings(max_prompts=1, max_points_per_side=1)
    size = pb.ImageSize(height=480, width=640)
    options = pb.AutoMaskOptions(exclude=[pb.CocoRle(size=size, counts="0" * 99)] * 1000)
    request = pb.AutoMaskRequest(image=pb.Image(encoded=b"image"), options=options)
    data = request.SerializeToString()

    assert field_limit.parse(pb.AutoMaskRequest, data, field_limit.max_fields(limits)) == request


@pytest.mark.parametrize(
    "data",
    [
        b"\x22\x00" * (2 << 20),  # empty prompts
        b"\x22\x80\x80\x80\x02" + b"\x0a\x00" * (2 << 20),  # empty points of one prompt
        b"\x08\x00" * (2 << 20),  # an unknown field
    ],
    ids=["prompts", "points", "unknown"],
)
def test_millions_of_fields_are_rejected_without_using_memory(data: bytes) -> None:
    limit = 20_000  # counting is slow while memory is traced
    tracemalloc.start()
    with pytest.raises(InvalidRequest, match=f"more than {limit} fields"):
        field_limit.parse(pb.PredictRequest, data, limit)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 1 << 20


def test_content_of_a_group_is_ignored() -> None:
    image = pb.EmbedRequest(image=pb.Image(encoded=bytes(1 << 17))).SerializeToString()
    # Field 1 would be a message outside of a group.
    group = b"\x7b" + b"\x0a\x02\xff\xff" + b"\x7c"

    assert parse(pb.EmbedRequest, image + group).image.encoded == bytes(1 << 17)


@pytest.mark.parametrize(
    "tail", [b"\xff", b"\x0a\xff", b"\x0f", b"\x08" + b"\xff" * 11, b"\x0a\xff\xff\xff\x7f"]
)
def test_large_bytes_that_are_not_a_request_are_invalid(tail: bytes) -> None:
    image = pb.EmbedRequest(image=pb.Image(encoded=bytes(1 << 17))).SerializeToString()

    with pytest.raises(InvalidRequest, match="is not a valid EmbedRequest"):
        parse(pb.EmbedRequest, image + tail)


@pytest.mark.parametrize(
    ("request_", "quick"),
    [
        (pb.EmbedRequest(image=pb.Image(encoded=bytes(500_000))), True),
        (pb.EmbedRequest(image=pb.Image(encoded=bytes(2 << 20))), False),
        (pb.PredictRequest(prompts=[pb.Prompt(points=[pb.Point(x=1)] * 20_000)]), False),
        (pb.PredictRequest(prompts=[pb.Prompt(points=[pb.Point(x=1)] * 200)]), True),
    ],
    ids=["image", "large image", "points", "few bytes"],
)
def test_requests_of_few_fields_or_bytes_are_quick_to_parse(request_: Any, quick: bool) -> None:
    data = request_.SerializeToString()

    assert field_limit.is_quick_to_parse(type(request_), data) is quick


def test_invalid_large_request_fails_at_once() -> None:
    data = b"\x0f" * 100_000  # no such wire type

    assert field_limit.is_quick_to_parse(pb.EmbedRequest, data)
    with pytest.raises(InvalidRequest, match="not a valid"):
        parse(pb.EmbedRequest, data)
