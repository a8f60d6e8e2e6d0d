"""A TCP relay between gateway and Triton that counts the bytes it forwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.support.tcp import serving


@dataclass
class Relay:
    """Bytes forwarded so far; ``url`` replaces the real address.

    While the relay is ``stuck`` it forwards nothing, but connections stay open, as if the machine
    hung.
    """

    url: str = ""
    sent: int = 0
    received: int = 0
    stuck: bool = False
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    def reset(self) -> None:
        """Count from zero again."""
        self.sent = self.received = 0

    @property
    def port(self) -> int:
        """Return the port of the relay."""
        return int(self.url.rpartition(":")[2])


@asynccontextmanager
async def relay(target: str, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[Relay]:
    """Forward connections to *host* to *target* while the block runs."""
    counts = Relay()
    far_host, _, far_port = target.rpartition(":")

    async def pump(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: str
    ) -> None:
        while data := await reader.read(1 << 20):
            if counts.stuck:
                continue
            setattr(counts, direction, getattr(counts, direction) + len(data))
            writer.write(data)
            await writer.drain()
        writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(far_host, int(far_port))
        counts.writers += [writer, far_writer]
        try:
            await asyncio.gather(
                pump(reader, far_writer, "sent"),
                pump(far_reader, writer, "received"),
                return_exceptions=True,
            )
        finally:
            far_writer.close()

    async with serving(connect, host, port) as listening:
        counts.url = f"{host}:{listening}"
        yield counts
