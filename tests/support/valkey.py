"""One Valkey server without cluster mode, which starts quickly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from harness.cluster.binaries import server_binary
from harness.cluster.node import HOST
from harness.cluster.ports import Ports
from tests.support.waiting import until


@asynccontextmanager
async def single_server(*options: str, host: str = HOST) -> AsyncIterator[int]:
    """Run a server and yield its port on loopback; *options* are those of its command line."""
    with Ports() as held:
        (port,) = held.reserve(1)
        arguments = ("--port", str(port), "--bind", host, "--save", "", *options)
        process = await asyncio.create_subprocess_exec(
            server_binary("valkey"), *arguments, stdout=asyncio.subprocess.DEVNULL
        )
        try:
            await until(lambda: _listens(host, port))
            yield port
        finally:
            process.kill()
            await process.wait()


async def _listens(host: str, port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True
