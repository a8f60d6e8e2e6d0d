"""Corruption in transit, which must not delete the value in the cluster."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from harness.cluster.node import HOST
from tests.cluster.caches import SLOT, GatewayCache, key, open_cache
from tests.support.tcp import relay
from tests.support.valkey import single_server

A = key("a" * 64)
# Offset of the flipped bit in the bytes that a server sends on one connection: in the tensors.
FLIPPED = SLOT // 2


@pytest.fixture
async def server() -> AsyncIterator[int]:
    """The port of a server without cluster mode, which redirects no client to another port."""
    async with single_server() as port:
        yield port


@asynccontextmanager
async def flipping(server: int, flips: Callable[[int], bool]) -> AsyncIterator[int]:
    """Relay to the server; *flips* is whether to flip a bit, by the number of the response."""
    numbers = itertools.count()

    def flip(data: bytearray, sent: int) -> None:
        if sent <= FLIPPED < sent + len(data):
            data[FLIPPED - sent] ^= flips(next(numbers))

    async with relay(server, change=flip) as port:
        yield port


async def stored(gateway: GatewayCache) -> bool:
    """Return whether the server still holds the intact value."""
    gateway.local.remove(A)
    return await gateway.get(A) == 3.0


@pytest.mark.parametrize(
    ("flips", "found", "counts"),
    [
        # Found after a second read, which counts as an error "corrupt".
        (lambda number: number == 0, 3.0, (1, 0)),
        (lambda number: True, None, (0, 1)),
    ],
    ids=["once", "each time"],
)
async def test_a_value_corrupted_in_transit_stays_in_the_cluster(
    server: int, flips: Callable[[int], bool], found: float | None, counts: tuple[int, int]
) -> None:
    async with (
        open_cache(f"{HOST}:{server}") as writer,
        flipping(server, flips) as port,
        open_cache(f"{HOST}:{port}") as reader,
    ):
        await writer.put(A, 3.0)

        assert await reader.get(A) == found
        errors = reader.count("shared_errors", kind="corrupt")
        misses = reader.count("requests", tier="shared", result="corrupt")
        assert (errors, misses) == counts
        assert await stored(writer)
