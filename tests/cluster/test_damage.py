"""Bits that flip on the way from the cluster, which must not cost the value that is there."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from harness.cluster.node import HOST
from tests.cluster.relays import relay
from tests.cluster.stores import SLOT, Gateway, key, store_over
from tests.support.valkey import single_server

A = key("a" * 64)
# Of what a server sends on one connection: within the tensors.
FLIPPED = SLOT // 2


@pytest.fixture
async def server() -> AsyncIterator[int]:
    """The port of a server without cluster mode: who asks it finds it where it asks."""
    async with single_server() as port:
        yield port


@asynccontextmanager
async def flipping(server: int, flips: Callable[[int], bool]) -> AsyncIterator[int]:
    """Serve what the server does, with a bit flipped on connections by the number of the flip."""
    numbers = itertools.count()

    def flip(data: bytearray, sent: int) -> None:
        if sent <= FLIPPED < sent + len(data):
            data[FLIPPED - sent] ^= flips(next(numbers))

    async with relay(server, change=flip) as port:
        yield port


async def stored(gateway: Gateway) -> bool:
    """Tell whether the value is there for who reads it without damage."""
    gateway.memory.drop(A)
    return await gateway.get(A) == 3.0


@pytest.mark.parametrize(
    ("flips", "found", "counts"),
    [
        # Found, with one failure of a kind of its own.
        (lambda number: number == 0, 3.0, (1, 0)),
        (lambda number: True, None, (0, 1)),
    ],
    ids=["once", "each time"],
)
async def test_a_value_that_is_damaged_on_its_way_stays_in_the_cluster(
    server: int, flips: Callable[[int], bool], found: float | None, counts: tuple[int, int]
) -> None:
    async with (
        store_over(f"{HOST}:{server}") as writer,
        flipping(server, flips) as port,
        store_over(f"{HOST}:{port}") as reader,
    ):
        await writer.put(A, 3.0)

        assert await reader.get(A) == found
        failed = reader.count("failures", kind="damaged")
        damaged = reader.count("requests", tier="shared", result="damaged")
        assert (failed, damaged) == counts
        assert await stored(writer)
