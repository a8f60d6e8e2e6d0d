"""Other gRPC clients: they accept responses up to 4 MiB unless an option raises the limit."""

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
DEFAULT_LIMIT_BYTES = 4 << 20


def predict_with_logits(prompts: int) -> pb.PredictRequest:
    """Return a request for all masks of some point prompts: three each, with logits."""
    return pb.PredictRequest(
        image=images.read(PIXELS).message,
        prompts=requests.prompt_messages([Prompt(points=[(32, 24)])] * prompts),
        multimask=pb.MULTIMASK_ALL,
        include_low_res_logits=True,
    )


async def test_six_prompts_with_logits_exceed_the_default_message_limit(target: str) -> None:
    async with grpc.aio.insecure_channel(target) as channel:
        stub = samserve_pb2_grpc.SegmentationServiceStub(channel)
        five = await stub.Predict(predict_with_logits(5))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Predict(predict_with_logits(6))
    options = [("grpc.max_receive_message_length", 256 << 20)]
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        six = await samserve_pb2_grpc.SegmentationServiceStub(channel).Predict(
            predict_with_logits(6)
        )

    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "message larger than max" in (caught.value.details() or "")
    assert five.ByteSize() < DEFAULT_LIMIT_BYTES < six.ByteSize()


def test_guide_names_the_limit_and_the_option_of_each_language() -> None:
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
