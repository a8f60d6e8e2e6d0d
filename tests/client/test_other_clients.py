"""Clients of other make: gRPC takes answers up to 4 MiB unless an option says otherwise."""

from __future__ import annotations

import re
from pathlib import Path

import grpc
import pytest
from samserve.client import Prompt, images, requests
from samserve.v1 import samserve_pb2 as pb
from samserve.v1 import samserve_pb2_grpc

from tests.client.conftest import PIXELS

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "clients.md"
TAKEN_BYTES = 4 << 20


def asking_for_logits(prompts: int) -> pb.PredictRequest:
    """Ask for all that there is of some clicks: three masks each, with logits."""
    return pb.PredictRequest(
        image=images.read(PIXELS).message,
        prompts=requests.prompt_messages([Prompt(points=[(32, 24)])] * prompts),
        multimask=pb.MULTIMASK_ALL,
        include_low_res_logits=True,
    )


async def test_many_prompts_with_logits_need_a_larger_limit(target: str) -> None:
    async with grpc.aio.insecure_channel(target) as channel:
        stub = samserve_pb2_grpc.SegmentationServiceStub(channel)
        five = await stub.Predict(asking_for_logits(5))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Predict(asking_for_logits(6))
    options = [("grpc.max_receive_message_length", 256 << 20)]
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        six = await samserve_pb2_grpc.SegmentationServiceStub(channel).Predict(asking_for_logits(6))

    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "message larger than max" in (caught.value.details() or "")
    assert five.ByteSize() < TAKEN_BYTES < six.ByteSize()


def test_the_guide_says_so_and_names_the_option_of_each_language() -> None:
    text = GUIDE.read_text(encoding="utf-8")

    for option in (
        *("grpc.max_receive_message_length", "MaxCallRecvMsgSize", "maxInboundMessageSize"),
        *("SetMaxReceiveMessageSize", "-max-msg-sz", "max_decoding_message_size"),
        *("MaxReceiveMessageSize", "4 MiB"),
    ):
        assert option in text, option
    proto = (ROOT / "proto/samserve/v1/samserve.proto").read_text(encoding="utf-8")
    assert re.search(r"4 MiB", re.sub(r"\n *// ", " ", proto))
    assert "docs/clients.md" in (ROOT / "README.md").read_text(encoding="utf-8")
