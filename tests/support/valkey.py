"""One server of Valkey without cluster mode, which is up at once."""

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
    """Run a server and give its port on loopback; *options* are as on its command line."""
    with Ports() as held:
        (port,) = held.take(1)
        words = ("--port", str(port), "--bind", host, "--save", "", *options)
        process = await asyncio.create_subprocess_exec(
            server_binary("valkey"), *words, stdout=asyncio.subprocess.DEVNULL
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
