"""Bytes on the wire between gateway and Triton for one Predict call."""

from __future__ import annotations

import pytest
from samserve.app import running
from samserve.client import Client, Prompt

from tests import photos
from tests.engines.full_size import EMBEDDINGS
from tests.engines.triton.relay import Relay, relay
from tests.engines.triton.services import settings_for
from tests.support.waiting import until
from tests.triton import servers

CALLS = 10
# Health checks are not part of a Predict call.
NEVER = 3600.0


async def bytes_per_predict(
    url: str, memory: str, relayed: Relay, model: str = ""
) -> tuple[float, float]:
    """Return the bytes sent to and received from Triton for one Predict on a cache hit."""
    settings = settings_for(url, shared_memory=memory, health_interval_s=NEVER, default_model=model)
    async with running(settings) as service, Client(service.address) as client:
        embedding = await client.embed(photos.files()[0])
        await client.predict(embedding, [Prompt(points=[(200, 200)])])
        relayed.reset()
        for x in range(CALLS):
            response = await client.predict(embedding, [Prompt(points=[(50 + 8 * x, 200)])])
            assert response.results[0]
        return relayed.sent / CALLS, relayed.received / CALLS


async def test_predict_over_shared_memory_transfers_less_than_four_kibibytes_each_way() -> None:
    server = servers.drawing()
    async with relay(server.grpc_address) as relayed:
        sent, received = await bytes_per_predict(relayed.url, "required", relayed)

    print(f"shared memory: {sent:.0f} bytes sent, {received:.0f} received per call")
    assert 100 < sent < 4096
    assert 50 < received < 4096


async def test_predict_in_messages_transfers_the_tensors() -> None:
    server = servers.drawing()
    async with relay(server.grpc_address) as relayed:
        sent, received = await bytes_per_predict(relayed.url, "off", relayed)

    assert sent > 2 << 20
    assert received > 1 << 20


@pytest.mark.parametrize("family", EMBEDDINGS)
async def test_a_click_does_not_transfer_the_embedding_of_any_family(family: str) -> None:
    server = servers.full_size()
    async with relay(server.grpc_address) as relayed:
        sent, received = await bytes_per_predict(relayed.url, "required", relayed, family)

    print(f"{family}: {sent:.0f} bytes sent, {received:.0f} received per call")
    assert 100 < sent < 4096
    assert 50 < received < 4096


async def test_a_click_in_messages_transfers_every_tensor_of_the_embedding() -> None:
    server = servers.full_size()
    async with relay(server.grpc_address) as relayed:
        sent, received = await bytes_per_predict(relayed.url, "off", relayed, "sam2")

    assert 8 << 20 < sent < 9 << 20
    assert 1 << 20 < received < 2 << 20


@pytest.mark.parametrize("memory", ["required", "off"])
async def test_broken_connection_is_reestablished(memory: str) -> None:
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
