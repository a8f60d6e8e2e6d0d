"""TCP servers for tests: a relay to another server, and one with a fixed reply."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from harness.cluster.node import HOST

Change = Callable[[bytearray, int], None]
"""Modifies a chunk of the response in place; gets the number of bytes before it."""


@asynccontextmanager
async def relay(
    target: int, port: int = 0, change: Change | None = None, silent: asyncio.Event | None = None
) -> AsyncIterator[int]:
    """Relay connections on *port*, by default a free one, to the port *target*; yields the port.

    Once *silent* is set, all data of the open connections is lost; later connections work.
    """
    connections: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        lost = silent if silent is not None and not silent.is_set() else None
        from_target, to_target = await asyncio.open_connection(HOST, target)
        with suppress(asyncio.CancelledError, ConnectionError):
            await asyncio.gather(
                _pump(reader, to_target, None, lost), _pump(from_target, writer, change, lost)
            )
        for each in (to_target, writer):
            each.close()
            with suppress(ConnectionError):
                await each.wait_closed()

    async with await asyncio.start_server(handle, HOST, port) as listener:
        yield int(listener.sockets[0].getsockname()[1])
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections)


async def _pump(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    change: Change | None,
    lost: asyncio.Event | None,
) -> None:
    sent = 0
    while data := bytearray(await reader.read(1 << 16)):
        if change is not None:
            change(data, sent)
        sent += len(data)
        if lost is not None and lost.is_set():
            continue
        writer.write(data)
        await writer.drain()
    writer.close()


@asynccontextmanager
async def replying_server(
    connections: int, reply: bytes = b"+OK\r\n"
) -> AsyncIterator[tuple[int, list[int]]]:
    """Send *reply* to all data on the first *connections* connections, and nothing on later ones.

    Yields the port, and a list that gets an element for each connection.
    """
    opened: list[int] = []
    closed = asyncio.Semaphore(0)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened.append(len(opened))
        replies = len(opened) <= connections
        with suppress(ConnectionError):
            while await reader.read(1 << 16):
                if replies:
                    writer.write(reply)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        closed.release()

    async with await asyncio.start_server(handle, HOST, 0) as server:
        yield int(server.sockets[0].getsockname()[1]), opened
        for _ in opened:
            await closed.acquire()
