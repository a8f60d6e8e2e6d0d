"""Just enough of HTTP/2 (RFC 9113) to misbehave on a socket."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import grpc
import hpack

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_HEADERS = 4
CODES = {code.value[0]: code.name for code in grpc.StatusCode}
MAX_CONCURRENT_STREAMS = 3


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    head = len(payload).to_bytes(3, "big") + bytes([kind, flags])
    return head + stream.to_bytes(4, "big") + payload


def hello() -> bytes:
    """The first bytes of a connection."""
    return PREFACE + frame(SETTINGS, 0, 0)


def call_headers(path: str, authority: str, **more: str) -> bytes:
    """Open a gRPC call on stream 1."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": authority,
        "te": "trailers",
        "content-type": "application/grpc",
        **more,
    }
    block = b"".join(
        # HPACK: literal field without indexing, both strings as they are (RFC 7541, 6.2.2).
        bytes([0, len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in fields.items()
    )
    return frame(HEADERS, END_HEADERS, 1, block)


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


async def ping_answer(reader: asyncio.StreamReader) -> int | None:
    """Read until a ping is answered, and give its number; None if the connection ends first."""
    while (got := await read_frame(reader)) is not None and got.kind != GOAWAY:
        if got.kind == PING:
            return int.from_bytes(got.payload, "big")
    return None


async def until_goaway(reader: asyncio.StreamReader) -> bytes:
    """Read until the server says good-bye, and give what it says; empty if it just hangs up."""
    while (got := await read_frame(reader)) is not None:
        if got.kind == GOAWAY:
            return got.payload
    return b""


async def status_of_stream(reader: asyncio.StreamReader) -> str:
    """Read until the server has ended stream 1, and give the name of the status that it told.

    What it did if it told none: `RESET`, or `HUNG UP`.
    """
    decoder = hpack.Decoder()
    while (got := await read_frame(reader)) is not None:
        if got.kind == HEADERS:
            fields = dict(decoder.decode(got.payload))
            if got.stream == 1 and "grpc-status" in fields:
                return CODES[int(fields["grpc-status"])]
        if got.stream == 1 and got.kind == RST_STREAM:
            return "RESET"
    return "HUNG UP"
