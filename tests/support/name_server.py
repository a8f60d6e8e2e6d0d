"""A DNS server on loopback, whose records a test changes."""

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
    """IPv4 addresses by name, with a time to live of 0; other names have no address."""

    addresses: dict[str, str] = field(default_factory=dict)
    queries: int = 0
    """The number of queries for an IPv4 address."""
    port: int = 0
    _transport: Any = None

    def target(self, name: str, port: int) -> str:
        """Return the gRPC target that resolves the name with this server."""
        return f"dns://127.0.0.1:{self.port}/{name}:{port}"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport for responses."""
        self._transport = transport
        self.port = transport.get_extra_info("sockname")[1]

    def datagram_received(self, data: bytes, addr: Any) -> None:
        """Respond to one query (RFC 1035, section 4)."""
        labels, offset = [], _HEADER
        while length := data[offset]:
            labels.append(data[offset + 1 : offset + 1 + length].decode())
            offset += 1 + length
        end = offset + 5
        (kind,) = struct.unpack(">H", data[offset + 1 : offset + 3])
        self.queries += kind == _A
        address = self.addresses.get(".".join(labels)) if kind == _A else None
        answer = b""
        if address is not None:
            # The name of the question, with a time to live of 0.
            answer = struct.pack(">HHHIH", 0xC00C, _A, 1, 0, 4) + socket.inet_aton(address)
        counts = struct.pack(">HHHHH", 0x8180, 1, int(address is not None), 0, 0)
        self._transport.sendto(data[:2] + counts + data[_HEADER:end] + answer, addr)


@asynccontextmanager
async def name_server() -> AsyncIterator[Names]:
    """Run a DNS server while the block runs."""
    loop = asyncio.get_running_loop()
    transport, names = await loop.create_datagram_endpoint(Names, local_addr=("127.0.0.1", 0))
    try:
        yield names
    finally:
        transport.close()
