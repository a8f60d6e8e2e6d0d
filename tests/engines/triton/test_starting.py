"""A gateway starts while Triton is slow: it waits, and says which setting gives it longer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from samserve.engines.base import EncoderInput
from samserve.errors import SamserveError
from samserve.segmentation import warmup
from samserve.types import Size
from structlog.testing import capture_logs

from tests.engines.drawing import held_pixels
from tests.engines.triton.opening import gateway
from tests.support.waiting import until
from tests.triton.servers import Holding

ANSWER_S = 0.5


@pytest.fixture
def slow(holding: Holding, monkeypatch: pytest.MonkeyPatch) -> Holding:
    """A Triton that does not end its first encode before it is released."""

    def held(pixels: Any, size: Size) -> EncoderInput:
        return EncoderInput(held_pixels(pixels), size)

    monkeypatch.setattr(warmup, "EncoderInput", held)
    return holding


async def start(holding: Holding, **settings: Any) -> None:
    async with gateway(holding.server.grpc_address, answer_s=ANSWER_S, **settings):
        pass


@pytest.mark.parametrize("memory", ["required", "off"])
async def test_a_slow_first_inference_is_waited_for(slow: Holding, memory: str) -> None:
    with capture_logs() as lines:
        starting = asyncio.create_task(start(slow, shared_memory=memory))
        await until(lambda: starting.done() or any("inference" in line["event"] for line in lines))
        while not starting.done():
            slow.hold.release()
            await asyncio.sleep(0.01)
        await starting

    (line, *_) = [line for line in lines if line["event"] == "waiting for the first inference"]
    assert "triton.answer_s gives it 0.5 s" in line["reason"]
    assert line["setting"] == "triton.startup_s"


async def test_a_first_inference_that_never_ends_names_the_settings(slow: Holding) -> None:
    with pytest.raises(SamserveError) as caught:
        await start(slow, startup_s=1.0)

    text = str(caught.value)
    assert "triton.answer_s gives it 0.5 s" in text
    assert text.endswith("given up after 1 s, triton.startup_s gives a slow start more time")
