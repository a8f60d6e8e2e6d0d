"""TCP servers for tests: a scripted one, a relay to another server, one with a fixed reply."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from harness.cluster.node import HOST

Change = Callable[[bytearray, int], None]
"""Modifies a chunk of the response in place; gets the number of bytes before it."""


Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

# Steps of the event loop between the acceptance of a connection and its handler.
_STEPS_TO_HANDLER = 4


@asynccontextmanager
async def serving(
    handle: Handle, host: str = HOST, port: int = 0, **options: Any
) -> AsyncIterator[int]:
    """Call *handle* for each connection while the block runs; yields the port.

    At the end, handlers are cancelled and all connections are closed, also those that clients open
    again at that moment: `asyncio.start_server` leaves open what has no running handler yet.
    """
    tasks: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handle(reader, writer)
        finally:
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks[asyncio.create_task(run(reader, writer))] = writer

    server = await asyncio.start_server(accept, host, port, **options)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for _ in range(_STEPS_TO_HANDLER):
            await asyncio.sleep(0)
        for task, writer in tasks.items():
            task.cancel()
            writer.transport.abort()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    failures = [
        each
        for each in results
        if isinstance(each, Exception) and not isinstance(each, ConnectionError)
    ]
    if failures:
        raise ExceptionGroup("handlers failed", failures)


@asynccontextmanager
async def relay(
    target: int, port: int = 0, change: Change | None = None, silent: asyncio.Event | None = None
) -> AsyncIterator[int]:
    """Relay connections on *port*, by default a free one, to the port *target*; yields the port.

    Once *silent* is set, all data of the open connections is lost; later connections work.
    """

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lost = silent if silent is not None and not silent.is_set() else None
        from_target, to_target = await asyncio.open_connection(HOST, target)
        try:
            await asyncio.gather(
                _pump(reader, to_target, None, lost), _pump(from_target, writer, change, lost)
            )
        finally:
            to_target.close()

    async with serving(handle, port=port) as listening:
        yield listening


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

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened.append(len(opened))
        replies = len(opened) <= connections
        while await reader.read(1 << 16):
            if replies:
                writer.write(reply)

    async with serving(handle) as port:
        yield port, opened
