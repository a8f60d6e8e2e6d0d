"""The host name in `triton.url` changes its address, or resolves only later."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio
from samserve.engines.triton import health_monitor
from samserve.engines.triton.connection import TritonConnection
from samserve.errors import SamserveError
from samserve.v1 import samserve_pb2 as pb

from tests import sample_images
from tests.engines.triton.relay import relay
from tests.engines.triton.services import gateway, is_healthy, opened
from tests.support.name_server import Names, name_server
from tests.support.waiting import until
from tests.triton import servers

NAME = "triton.test"
OLD, NEW = "127.0.0.2", "127.0.0.3"


@pytest_asyncio.fixture
async def names() -> AsyncIterator[Names]:
    async with name_server() as found:
        yield found


async def failures_before(step: Callable[[], Awaitable[object]]) -> int:
    """Retry *step*, and return the number of failures before the first success."""
    count = 0
    while True:
        try:
            await step()
        except SamserveError:
            count += 1
        else:
            return count
        await asyncio.sleep(0.1)


@pytest.mark.parametrize("memory", ["off", "required"])
async def test_triton_is_found_at_its_new_address(names: Names, memory: str) -> None:
    target = servers.drawing().grpc_address
    async with relay(target, OLD) as old:
        names.addresses[NAME] = OLD
        url = names.target(NAME, old.port)
        session = gateway(url, shared_memory=memory)
        service, stub = await session.__aenter__()
    async with relay(target, NEW, old.port):
        names.addresses[NAME] = NEW
        await until(lambda: not is_healthy(service))
        await until(lambda: is_healthy(service))
        response = await stub.Predict(
            pb.PredictRequest(image=sample_images.image(), prompts=[sample_images.point_prompt()])
        )
        await session.__aexit__(None, None, None)

    assert response.results


async def test_name_is_resolved_when_a_connection_ends_even_if_resolved_recently(
    names: Names,
) -> None:
    target = servers.drawing().grpc_address
    async with relay(target, OLD) as old:
        names.addresses[NAME] = OLD
        connection = TritonConnection(names.target(NAME, old.port), 1)
        await connection.ready_models()
    async with relay(target, NEW, old.port):
        names.addresses[NAME] = NEW
        failures = await failures_before(connection.ready_models)
        await connection.aclose()

    # By default gRPC resolves a name at most every 30 s: that would be about 300 failures, or a
    # hundred on a machine that is three times slower.  A slow machine has fewer, never more.
    assert failures < 60


async def test_unknown_name_is_resolved_repeatedly_at_startup(
    names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health_monitor, "_REOPEN_INTERVAL_S", 0.0)
    host, port = servers.drawing().grpc_address.split(":")

    async def open_and_close() -> list[str]:
        url = names.target(NAME, int(port))
        async with opened(url, shared_memory="off") as (engine, _):
            return list(engine.models)

    opening = asyncio.create_task(open_and_close())
    # gRPC itself would back off after each response without an address, up to two minutes.
    await until(lambda: names.queries >= 15)
    names.addresses[NAME] = host

    assert await opening == ["fake"]


@pytest.mark.slow
async def test_connections_to_a_hanging_triton_are_replaced_when_its_address_changes(
    names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health_monitor, "_REOPEN_INTERVAL_S", 0.0)
    target = servers.drawing().grpc_address
    async with relay(target, OLD) as old, relay(target, NEW, old.port):
        names.addresses[NAME] = OLD
        async with gateway(names.target(NAME, old.port), shared_memory="off") as (service, _):
            connection = service.engine._connection  # type: ignore[attr-defined]
            before = connection._current
            old.stuck = True
            await until(lambda: not is_healthy(service))
            names.addresses[NAME] = NEW
            # gRPC itself keeps the old connections until a keepalive ping times out.
            await until(lambda: connection._current is not before)
            await until(lambda: is_healthy(service))
