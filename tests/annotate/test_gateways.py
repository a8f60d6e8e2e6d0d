"""Several gateways are used evenly, and one that becomes unavailable is avoided."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest
from samserve import errors
from samserve.annotate.gateways import GIVE_UP_S, Gateways
from samserve.client import Catalog, Client, Embedding, Overloaded, Unavailable
from samserve.client.errors import ErrorDetails
from samserve.engines.fake import MODEL, FakeEngine

from tests import sample_images
from tests.conftest import serving, settings_with
from tests.support.clock import Clock

IMAGE = sample_images.png()
BUSY = Overloaded(
    "busy", code="RESOURCE_EXHAUSTED", details=ErrorDetails("OVERLOADED", retry_after_s=3.0)
)
GONE = Unavailable("gone", code="UNAVAILABLE")


class Sleeper:
    """A clock that jumps to the end of each wait."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.start = self.clock()

    async def __call__(self, seconds: float) -> None:
        self.clock.now += seconds
        await asyncio.sleep(0)

    @property
    def waited(self) -> float:
        return self.clock() - self.start


@asynccontextmanager
async def clients(count: int) -> AsyncIterator[list[Client]]:
    async with AsyncExitStack() as stack:
        services = [await stack.enter_async_context(serving()) for _ in range(count)]
        yield [await stack.enter_async_context(Client(service.address)) for service, _ in services]


def gateways(opened: list[Client], sleeper: Sleeper) -> Gateways:
    return Gateways(opened, now=sleeper.clock, sleep=sleeper)


async def embed(client: Client) -> Embedding:
    return await client.embed(IMAGE)


async def test_the_gateway_with_the_fewest_calls_under_way_is_used() -> None:
    release, used = asyncio.Event(), []

    async def use(client: Client) -> None:
        used.append(client)
        await release.wait()

    async with clients(3) as opened:
        every = gateways(opened, Sleeper())
        async with asyncio.TaskGroup() as group:
            for count in range(9):
                group.create_task(every.call(use))
                await asyncio.sleep(0)
                counts = [used.count(client) for client in opened]
                assert (sum(counts), max(counts) - min(counts) <= 1) == (count + 1, True)
            release.set()


async def test_a_gateway_that_stops_is_avoided_and_used_again_when_it_is_back() -> None:
    sleeper = Sleeper()
    used: list[str] = []
    async with AsyncExitStack() as stack:
        staying = (await stack.enter_async_context(serving()))[0].address
        first = AsyncExitStack()
        leaving = (await first.enter_async_context(serving()))[0].address
        names = (leaving, staying)
        opened = [await stack.enter_async_context(Client(each)) for each in names]
        every = Gateways(opened, names, now=sleeper.clock, sleep=sleeper)

        async def use(client: Client) -> None:
            await client.embed(IMAGE)
            used.append(names[opened.index(client)])

        await every.models()
        for _ in range(2):
            await every.call(use)
        await first.aclose()
        for _ in range(4):
            await every.call(use)
        port = int(leaving.rpartition(":")[2])
        await stack.enter_async_context(serving(settings_with(server={"port": port})))
        while used[-1] == staying and len(used) < 500:
            sleeper.clock.now += 1.0
            await every.call(use)

    assert used[:2] == [leaving, staying]
    assert used[2:6] == [staying] * 4
    assert used[-1] == leaving


class Unreachable(Client):
    """Fails at once; a client that connects repeats each call for most of a second."""

    async def models(self) -> Catalog:
        raise GONE

    async def embed(self, *_: object, **__: object) -> Embedding:
        raise GONE


async def test_a_run_ends_when_no_gateway_is_available_for_a_minute() -> None:
    sleeper = Sleeper()
    async with Unreachable("127.0.0.1:1") as client:
        every = gateways([client], sleeper)

        with pytest.raises(Unavailable):
            await every.models()
        assert sleeper.waited == 0
        with pytest.raises(Unavailable):
            await every.call(embed)

    assert sleeper.waited >= GIVE_UP_S


async def test_a_call_that_a_busy_gateway_rejects_is_made_to_another_one() -> None:
    async with clients(2) as opened:
        every = gateways(opened, Sleeper())
        used = []

        async def use(client: Client) -> str:
            used.append(client)
            if client is opened[0]:
                raise BUSY
            return "done"

        assert await every.call(use) == "done"
    assert used == opened


async def test_an_image_that_makes_gateways_unavailable_again_and_again_fails() -> None:
    sleeper = Sleeper()
    async with clients(2) as opened:
        every = gateways(opened, sleeper)

        async def kill(client: Client) -> None:
            # Meanwhile the gateways are available to others.
            await every.call(embed)
            raise GONE

        with pytest.raises(errors.Unavailable, match="became unavailable 5 times: gone"):
            await every.call(kill)


async def test_gateways_with_other_weights_are_rejected() -> None:
    async with AsyncExitStack() as stack:
        engines = (FakeEngine(), FakeEngine(model=replace(MODEL, digest="fake-2")))
        services = [await stack.enter_async_context(serving(engine=each)) for each in engines]
        opened = [
            await stack.enter_async_context(Client(service.address)) for service, _ in services
        ]
        every = Gateways(opened, ["one:1", "two:2"])

        with pytest.raises(errors.Misconfigured, match=r"^two:2 serves other weights of 'fake'"):
            await every.models()
