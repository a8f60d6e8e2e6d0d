"""A name server on loopback, whose answers a test changes."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

_HEADER = 12
_A = 1


@dataclass
class Names(asyncio.DatagramProtocol):
    """IPv4 addresses by name, each for no longer than one answer; other names have none."""

    addresses: dict[str, str] = field(default_factory=dict)
    asked: int = 0
    """How often somebody has asked for an IPv4 address."""
    port: int = 0
    _transport: Any = None

    def target(self, name: str, port: int) -> str:
        """Return what gRPC connects to when it is to ask this server for the name."""
        return f"dns://127.0.0.1:{self.port}/{name}:{port}"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep what answers are sent by."""
        self._transport = transport
        self.port = transport.get_extra_info("sockname")[1]

    def datagram_received(self, data: bytes, addr: Any) -> None:
        """Answer one question (RFC 1035, section 4)."""
        labels, place = [], _HEADER
        while length := data[place]:
            labels.append(data[place + 1 : place + 1 + length].decode())
            place += 1 + length
        end = place + 5
        (kind,) = struct.unpack(">H", data[place + 1 : place + 3])
        self.asked += kind == _A
        address = self.addresses.get(".".join(labels)) if kind == _A else None
        answer = b""
        if address is not None:
            # The name of the question, for no second longer.
            answer = struct.pack(">HHHIH", 0xC00C, _A, 1, 0, 4) + socket.inet_aton(address)
        counts = struct.pack(">HHHHH", 0x8180, 1, int(address is not None), 0, 0)
        self._transport.sendto(data[:2] + counts + data[_HEADER:end] + answer, addr)


@asynccontextmanager
async def name_server() -> AsyncIterator[Names]:
    """Serve names while the block runs."""
    loop = asyncio.get_running_loop()
    transport, names = await loop.create_datagram_endpoint(Names, local_addr=("127.0.0.1", 0))
    try:
        yield names
    finally:
        transport.close()
