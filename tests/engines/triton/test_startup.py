"""A gateway that starts while Triton is slow waits, and names the setting for its timeout."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from samserve.engines.base import EncoderInput
from samserve.errors import SamserveError
from samserve.segmentation import warmup
from samserve.types import Size
from structlog.testing import capture_logs

from tests.engines.drawing import mark_held
from tests.engines.triton.services import gateway
from tests.support.waiting import until
from tests.triton.servers import Holding

REQUEST_TIMEOUT_S = 0.5


@pytest.fixture
def slow(holding: Holding, monkeypatch: pytest.MonkeyPatch) -> Holding:
    """A Triton whose first encode does not end until it is released."""

    def held(pixels: Any, size: Size) -> EncoderInput:
        return EncoderInput(mark_held(pixels), size)

    monkeypatch.setattr(warmup, "EncoderInput", held)
    return holding


async def start(holding: Holding, **settings: Any) -> None:
    url = holding.server.grpc_address
    async with gateway(url, request_timeout_s=REQUEST_TIMEOUT_S, **settings):
        pass


@pytest.mark.parametrize("memory", ["required", "off"])
async def test_startup_waits_for_a_slow_first_inference(slow: Holding, memory: str) -> None:
    with capture_logs() as lines:
        starting = asyncio.create_task(start(slow, shared_memory=memory))
        await until(lambda: starting.done() or any("inference" in line["event"] for line in lines))
        while not starting.done():
            slow.hold.release()
            await asyncio.sleep(0.01)
        await starting

    (line, *_) = [line for line in lines if line["event"] == "waiting for the first inference"]
    assert "triton.request_timeout_s is 0.5 s" in line["reason"]
    assert line["setting"] == "triton.startup_timeout_s"


async def test_error_of_a_first_inference_that_never_ends_names_the_settings(
    slow: Holding,
) -> None:
    with pytest.raises(SamserveError) as caught:
        await start(slow, startup_timeout_s=1.0)

    text = str(caught.value)
    assert "triton.request_timeout_s is 0.5 s" in text
    assert text.endswith("given up after 1 s, increase triton.startup_timeout_s for slow starts")
