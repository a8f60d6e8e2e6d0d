"""What a click costs on the socket to Triton, counted on the wire."""

from __future__ import annotations

import pytest
from samserve.app import running
from samserve.client import Client, Prompt

from tests import photos
from tests.engines.triton.opening import settings_for
from tests.engines.triton.relay import Relay, relay
from tests.support.waiting import until
from tests.triton import servers

CLICKS = 10
# Looking at Triton's health is not part of a click.
NEVER = 3600.0


async def click(url: str, memory: str, relayed: Relay) -> tuple[float, float]:
    """Bytes sent to and received from Triton for one Predict of one point on a cache hit."""
    settings = settings_for(url, shared_memory=memory, health_interval_s=NEVER)
    async with running(settings) as service, Client(service.address) as client:
        embedding = await client.embed(photos.files()[0])
        await client.predict(embedding, [Prompt(points=[(200, 200)])])
        relayed.reset()
        for x in range(CLICKS):
            answer = await client.predict(embedding, [Prompt(points=[(50 + 8 * x, 200)])])
            assert answer.results[0]
        return relayed.sent / CLICKS, relayed.received / CLICKS


async def test_a_click_takes_less_than_four_kibibytes_each_way() -> None:
    server = servers.drawing()
    async with relay(server.grpc_address) as relayed:
        sent, received = await click(relayed.url, "required", relayed)

    print(f"shared memory: {sent:.0f} bytes sent, {received:.0f} received a click")
    assert 100 < sent < 4096
    assert 50 < received < 4096


async def test_the_count_notices_tensors_in_messages() -> None:
    server = servers.drawing()
    async with relay(server.grpc_address) as relayed:
        sent, received = await click(relayed.url, "off", relayed)

    assert sent > 2 << 20
    assert received > 1 << 20


@pytest.mark.parametrize("memory", ["required", "off"])
async def test_a_broken_connection_is_mended(memory: str) -> None:
    server = servers.drawing()
    async with relay(server.grpc_address) as relayed:
        settings = settings_for(relayed.url, shared_memory=memory)
        async with running(settings) as service, Client(service.address) as client:
            embedding = await client.embed(photos.files()[0])
            prompt = [Prompt(points=[(200, 200)])]
            before = await client.predict(embedding, prompt)
            for writer in relayed.writers:
                writer.transport.abort()
            await until(service.engine.ready)
            after = await client.predict(embedding, prompt)

    assert after.results[0][0].bbox == before.results[0][0].bbox
