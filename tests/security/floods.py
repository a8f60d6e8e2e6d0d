"""Endless headers, which a client can send before it is authenticated."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from tests.security import http2

PREDICT = "/samserve.v1.SegmentationService/Predict"


def continuations(authority: str, nbytes: int) -> Iterator[bytes]:
    """Yield frames of a call whose headers never end; the client acknowledges no settings."""
    yield http2.hello()
    yield http2.frame(http2.HEADERS, 0, 1, http2.call_block(PREDICT, authority))
    field = http2.literal("x-padding", "x" * 20)
    block = field * (http2.MAX_FRAME_BYTES // len(field))
    for _ in range(nbytes // len(block)):
        yield http2.frame(http2.CONTINUATION, 0, 1, block)


def tiny_fields(authority: str, streams: int, fields: int) -> Iterator[bytes]:
    """Yield calls whose headers repeat an indexed one-byte field, at one byte each."""
    yield http2.hello()
    first = http2.call_block(PREDICT, authority) + http2.literal("a", "", indexed=True)
    for number in range(streams):
        block = first if number == 0 else http2.call_block(PREDICT, authority)
        # The newest entry of the HPACK table (RFC 7541, 2.3.3).
        block += bytes([0x80 | 62]) * fields
        yield http2.headers_in_frames(block, 2 * number + 1, ends=True)


async def send(writer: asyncio.StreamWriter, frames: Iterator[bytes]) -> None:
    """Send all frames, or until the peer closes the connection."""
    with contextlib.suppress(ConnectionError):
        for each in frames:
            writer.write(each)
            await writer.drain()
