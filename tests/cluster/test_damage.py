"""Bits that flip on the way from the cluster, which must not cost the value that is there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from harness.cluster.node import HOST
from tests.cluster.stores import SLOT, Gateway, key, store_over
from tests.support.valkey import single_server

A = key("a" * 64)
# Of what a server sends on one connection: within the tensors.
FLIPPED = SLOT // 2


@pytest.fixture
async def server() -> AsyncIterator[int]:
    """The port of a server without cluster mode: who asks it finds it where it asks."""
    async with single_server() as port:
        yield port


@asynccontextmanager
async def flipping(server: int, flips: Callable[[int], bool]) -> AsyncIterator[int]:
    """Serve what the server does, with a bit flipped on connections by the number of the flip."""
    talks: set[asyncio.Task[None]] = set()
    flipped: list[int] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        talks.add(task)
        theirs, ours = await asyncio.open_connection(HOST, server)

        def flip(data: bytearray, sent: int) -> None:
            if sent <= FLIPPED < sent + len(data):
                flipped.append(len(flipped))
                data[FLIPPED - sent] ^= flips(flipped[-1])

        with suppress(asyncio.CancelledError, ConnectionError):
            await asyncio.gather(pump(reader, ours, lambda *_: None), pump(theirs, writer, flip))
        for each in (ours, writer):
            each.close()
            with suppress(ConnectionError):
                await each.wait_closed()

    async with await asyncio.start_server(talk, HOST, 0) as listener:
        yield listener.sockets[0].getsockname()[1]
        for task in talks:
            task.cancel()
        await asyncio.gather(*talks)


async def pump(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    change: Callable[[bytearray, int], None],
) -> None:
    sent = 0
    while data := bytearray(await reader.read(1 << 16)):
        change(data, sent)
        sent += len(data)
        writer.write(data)
        await writer.drain()


async def stored(gateway: Gateway) -> bool:
    """Tell whether the value is there for who reads it without damage."""
    gateway.memory.drop(A)
    return await gateway.get(A) == 3.0


@pytest.mark.parametrize(
    ("flips", "found", "counts"),
    [
        # Found, with one failure of a kind of its own.
        (lambda number: number == 0, 3.0, (1, 0)),
        (lambda number: True, None, (0, 1)),
    ],
    ids=["once", "each time"],
)
async def test_a_value_that_is_damaged_on_its_way_stays_in_the_cluster(
    server: int, flips: Callable[[int], bool], found: float | None, counts: tuple[int, int]
) -> None:
    async with (
        store_over(f"{HOST}:{server}") as writer,
        flipping(server, flips) as port,
        store_over(f"{HOST}:{port}") as reader,
    ):
        await writer.put(A, 3.0)

        assert await reader.get(A) == found
        failed = reader.count("failures", kind="damaged")
        damaged = reader.count("requests", tier="shared", result="damaged")
        assert (failed, damaged) == counts
        assert await stored(writer)
