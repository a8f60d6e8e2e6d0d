"""Servers in front of a node, or in its place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from harness.cluster.node import HOST

Change = Callable[[bytearray, int], None]
"""Changes a piece of what is sent back; gets how many bytes were sent before it."""


@asynccontextmanager
async def relay(target: int, port: int = 0, change: Change | None = None) -> AsyncIterator[int]:
    """Serve at one port, by default a free one, what is served at another; yields the port."""
    talks: set[asyncio.Task[None]] = set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        talks.add(task)
        theirs, ours = await asyncio.open_connection(HOST, target)
        with suppress(asyncio.CancelledError, ConnectionError):
            await asyncio.gather(_pump(reader, ours, None), _pump(theirs, writer, change))
        for each in (ours, writer):
            each.close()
            with suppress(ConnectionError):
                await each.wait_closed()

    async with await asyncio.start_server(talk, HOST, port) as listener:
        yield int(listener.sockets[0].getsockname()[1])
        for task in talks:
            task.cancel()
        await asyncio.gather(*talks)


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, change: Change | None
) -> None:
    sent = 0
    while data := bytearray(await reader.read(1 << 16)):
        if change is not None:
            change(data, sent)
        sent += len(data)
        writer.write(data)
        await writer.drain()
    writer.close()


@asynccontextmanager
async def answering(
    connections: int, answer: bytes = b"+OK\r\n"
) -> AsyncIterator[tuple[int, list[int]]]:
    """Answer all that comes over the first connections; yields the port, and a list that grows.

    It has an element for each connection.
    """
    opened: list[int] = []
    closed = asyncio.Semaphore(0)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened.append(len(opened))
        answers = len(opened) <= connections
        with suppress(ConnectionError):
            while await reader.read(1 << 16):
                if answers:
                    writer.write(answer)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        closed.release()

    async with await asyncio.start_server(talk, HOST, 0) as server:
        yield int(server.sockets[0].getsockname()[1]), opened
        for _ in opened:
            await closed.acquire()
