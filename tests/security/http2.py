"""A minimal HTTP/2 (RFC 9113) implementation for hostile clients."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import grpc
import hpack

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, CONTINUATION = 0, 1, 3, 4, 6, 7, 9
END_HEADERS, ACK = 4, 1
CODES = {code.value[0]: code.name for code in grpc.StatusCode}
MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE = 3, 4
MAX_FRAME_BYTES = 1 << 14


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    head = len(payload).to_bytes(3, "big") + bytes([kind, flags])
    return head + stream.to_bytes(4, "big") + payload


def hello(settings: dict[int, int] | None = None) -> bytes:
    """Return the first bytes of a connection."""
    pairs = (
        name.to_bytes(2, "big") + value.to_bytes(4, "big")
        for name, value in (settings or {}).items()
    )
    return PREFACE + frame(SETTINGS, 0, 0, b"".join(pairs))


async def connected(
    address: str, first: bytes | None = None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect and send the first bytes, by default those of `hello`."""
    host, port = address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(hello() if first is None else first)
    return reader, writer


async def greet(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    settings: dict[int, int] | None = None,
) -> None:
    """Begin a connection as RFC 9113 requires, with an acknowledgement of the settings."""
    writer.write(hello(settings))
    while (got := await read_frame(reader)) is not None and got.kind != SETTINGS:
        pass
    writer.write(frame(SETTINGS, ACK, 0))


def call_headers(path: str, authority: str, **more: str) -> bytes:
    """Return the HEADERS frame of a gRPC call on stream 1."""
    return frame(HEADERS, END_HEADERS, 1, call_block(path, authority, **more))


def call_block(path: str, authority: str, **more: str) -> bytes:
    """Return the compressed headers of a gRPC call."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": authority,
        "te": "trailers",
        "content-type": "application/grpc",
        **more,
    }
    return b"".join(literal(name, value) for name, value in fields.items())


def literal(name: str, value: str, *, indexed: bool = False) -> bytes:
    """Return a field in HPACK with literal strings (RFC 7541, 6.2.1 and 6.2.2)."""
    return bytes([0x40 * indexed]) + _string(name) + _string(value)


def _string(text: str) -> bytes:
    rest, length = len(text) - 127, b""
    while rest >= 0:
        rest, low = divmod(rest, 128) if rest >= 128 else (-1, rest)
        length += bytes([low | 128 * (rest >= 0)])
    return bytes([min(len(text), 127)]) + length + text.encode()


def headers_in_frames(block: bytes, stream: int, *, ends: bool) -> bytes:
    """Return headers in as many frames as required; without *ends*, more may follow."""
    parts = [block[at : at + MAX_FRAME_BYTES] for at in range(0, len(block), MAX_FRAME_BYTES)]
    return b"".join(
        frame(
            CONTINUATION if number else HEADERS,
            END_HEADERS if ends and number == len(parts) - 1 else 0,
            stream,
            part,
        )
        for number, part in enumerate(parts)
    )


@dataclass(frozen=True)
class Frame:
    kind: int
    stream: int
    payload: bytes


async def read_frame(reader: asyncio.StreamReader) -> Frame | None:
    """Read a frame; None at the end of the connection."""
    try:
        head = await reader.readexactly(9)
        payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    return Frame(head[3], int.from_bytes(head[5:9], "big"), payload)


async def read_ping_ack(reader: asyncio.StreamReader) -> int | None:
    """Read until a ping is acknowledged and return its number; None if the connection ends."""
    while (got := await read_frame(reader)) is not None and got.kind != GOAWAY:
        if got.kind == PING:
            return int.from_bytes(got.payload, "big")
    return None


async def until_goaway(reader: asyncio.StreamReader) -> bytes:
    """Read until GOAWAY and return its payload; empty if the connection ends without it."""
    while (got := await read_frame(reader)) is not None:
        if got.kind == GOAWAY:
            return got.payload
    return b""


async def status_of_stream(reader: asyncio.StreamReader) -> str:
    """Read until the server has ended stream 1, and return the name of its gRPC status.

    Without a status: `RESET`, or `CLOSED` if the connection ended.
    """
    decoder = hpack.Decoder()
    while (got := await read_frame(reader)) is not None:
        if got.kind == HEADERS:
            fields = dict(decoder.decode(got.payload))
            if got.stream == 1 and "grpc-status" in fields:
                return CODES[int(fields["grpc-status"])]
        if got.stream == 1 and got.kind == RST_STREAM:
            return "RESET"
    return "CLOSED"
