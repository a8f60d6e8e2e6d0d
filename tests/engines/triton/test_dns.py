"""The name in `triton.url` gets another address, or comes late."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio
from samserve.engines.triton import health_monitor
from samserve.engines.triton.connection import TritonConnection
from samserve.errors import SamserveError
from samserve.v1 import samserve_pb2 as pb

from tests import pictures
from tests.engines.triton.opening import gateway, is_healthy, opened
from tests.engines.triton.relay import relay
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
    """Try again and again, and count the failures before the first success."""
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
async def test_a_triton_at_another_address_is_found(names: Names, memory: str) -> None:
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
        answer = await stub.Predict(
            pb.PredictRequest(image=pictures.image(), prompts=[pictures.click()])
        )
        await session.__aexit__(None, None, None)

    assert answer.results


async def test_a_name_is_looked_up_when_its_connection_ends_even_if_it_was_just_before(
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

    # By default gRPC looks a name up every 30 s at most: that would be some 300 failures, or a
    # hundred on a machine that is three times as slow.  A slow one makes fewer, never more.
    assert failures < 60


async def test_a_name_that_comes_late_is_asked_for_all_the_time(
    names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health_monitor, "_REOPEN_EVERY_S", 0.0)
    host, port = servers.drawing().grpc_address.split(":")

    async def open_and_close() -> list[str]:
        url = names.target(NAME, int(port))
        async with opened(url, shared_memory="off") as (engine, _):
            return list(engine.models)

    opening = asyncio.create_task(open_and_close())
    # gRPC itself would wait longer after each answer without an address, in the end two minutes.
    await until(lambda: names.asked >= 15)
    names.addresses[NAME] = host

    assert await opening == ["fake"]


@pytest.mark.slow
async def test_a_triton_that_hangs_is_left_when_its_name_leads_elsewhere(
    names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health_monitor, "_REOPEN_EVERY_S", 0.0)
    target = servers.drawing().grpc_address
    async with relay(target, OLD) as old, relay(target, NEW, old.port):
        names.addresses[NAME] = OLD
        async with gateway(names.target(NAME, old.port), shared_memory="off") as (service, _):
            connection = service.engine._connection  # type: ignore[attr-defined]
            before = connection._now
            old.stuck = True
            await until(lambda: not is_healthy(service))
            names.addresses[NAME] = NEW
            # gRPC itself holds on to the old connections until a ping has had no answer for long.
            await until(lambda: connection._now is not before)
            await until(lambda: is_healthy(service))
