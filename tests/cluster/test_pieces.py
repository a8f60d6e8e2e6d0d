"""Large values in the cluster: their pieces are written apart, and belong to one value."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from samserve.cache.shared import pieces, value_format
from samserve.cache.shared.cache import Presence
from samserve.cache.shared.pieces import PIECE_BYTES
from samserve.errors import CacheUnavailable, EmbeddingNotFound

from harness.cluster.cluster import Cluster
from tests.cluster.caches import FACTS, GatewayCache, key, open_cache, tensors

A = key("a" * 64)
TTL_MS = 60_000
PIECES = 5
"""Of the fake engine's embedding, 2 MiB and a header."""


@pytest.fixture
async def gateway(nodes: str) -> AsyncIterator[GatewayCache]:
    async with open_cache(nodes) as opened:
        yield opened


@pytest.fixture
def server(cluster: Cluster, gateway: GatewayCache) -> Any:
    """A client of the node that owns the key."""
    return cluster.client(cluster.owner_of(gateway.shared.name(A)))


def value(gateway: GatewayCache, content: float) -> bytearray:
    return value_format.encode(gateway.shared.name(A), FACTS, tensors(content))


async def read(gateway: GatewayCache) -> float:
    found = (await gateway.shared.get(A, lambda value: True)).value
    array = np.empty((256, 64, 64), np.float16)
    found.copy_into({"image_embedding": array})
    assert (array == array[0, 0, 0]).all()
    return float(array[0, 0, 0])


async def test_no_command_transfers_more_than_a_piece(gateway: GatewayCache, server: Any) -> None:
    data = value(gateway, 1.0)
    commands = pieces.put_commands(b"name", b"", data, TTL_MS)
    assert max(len(part) for each in commands for part in each if not isinstance(part, int)) == (
        PIECE_BYTES
    )

    assert (await gateway.shared.put(A, data, 60)).own_value
    stored = server.hgetall(gateway.shared.name(A))
    assert len(stored) == PIECES + 1  # and the checksum
    assert max(map(len, stored.values())) == PIECE_BYTES
    assert await read(gateway) == 1.0


async def test_another_value_leaves_the_pieces_of_the_first_only(
    gateway: GatewayCache, server: Any
) -> None:
    await gateway.shared.put(A, value(gateway, 1.0), 60)
    before = server.hgetall(gateway.shared.name(A))
    for content, own in ((2.0, False), (1.0, True)):
        result = await gateway.shared.put(A, value(gateway, content), 60)

        assert (result.presence, result.own_value) == (Presence.STORED, own)
        assert server.hgetall(gateway.shared.name(A)) == before
    assert await read(gateway) == 1.0


async def test_a_value_that_was_deleted_meanwhile_leaves_no_pieces(
    gateway: GatewayCache, server: Any
) -> None:
    await gateway.shared.delete(A, 60)
    result = await gateway.shared.put(A, value(gateway, 1.0), 60, marker=b"another")

    assert result.presence is Presence.DELETED
    assert list(server.hgetall(gateway.shared.name(A))) == [b"deleted"]


@pytest.mark.parametrize("number", [1, PIECES - 1])
@pytest.mark.parametrize("damage", ["flipped", "missing"])
async def test_a_damaged_piece_makes_the_value_corrupt(
    number: int, damage: str, gateway: GatewayCache, server: Any
) -> None:
    data, name = value(gateway, 1.0), gateway.shared.name(A)
    await gateway.shared.put(A, data, 60)
    field = f"p2:{value_format.checksum(data).hex()}:{number}"
    if damage == "missing":
        server.hdel(name, field)
    else:
        piece = bytearray(server.hget(name, field))
        piece[-1] ^= 1
        server.hset(name, field, bytes(piece))

    with pytest.raises(EmbeddingNotFound):
        await gateway.shared.get(A, lambda value: True)
    assert gateway.count("requests", tier="shared", result="corrupt") == 1
    assert not server.hexists(name, "v2")
    assert await gateway.shared.check(A) is Presence.ABSENT
    await gateway.shared.put(A, data, 60)
    assert await read(gateway) == 1.0


async def test_pieces_without_their_value_expire(gateway: GatewayCache, server: Any) -> None:
    """The connection breaks, or the gateway dies, before the last command."""
    name = gateway.shared.name(A)
    *first, _ = pieces.put_commands(name, b"", value(gateway, 1.0), TTL_MS)
    for command in first:
        server.execute_command(*command)

    assert 0 < server.pttl(name) <= TTL_MS
    assert await gateway.shared.check(A) is Presence.ABSENT
    with pytest.raises(EmbeddingNotFound):
        await gateway.shared.get(A, lambda value: True)


async def test_a_value_is_not_completed_without_its_pieces(
    gateway: GatewayCache, server: Any
) -> None:
    """The node was replaced, or the key evicted, during the write."""
    *_, last = pieces.put_commands(gateway.shared.name(A), b"", value(gateway, 1.0), TTL_MS)

    with pytest.raises(CacheUnavailable):
        await gateway.shared._write(A, last)
    assert not server.exists(gateway.shared.name(A))


async def test_concurrent_writers_of_different_values_agree_on_one(
    gateway: GatewayCache, server: Any, nodes: str
) -> None:
    async with open_cache(nodes) as other:
        results = await asyncio.gather(
            *(
                each.shared.put(A, value(each, content), 60)
                for each, content in ((gateway, 1.0), (other, 2.0)) * 3
            )
        )
        assert {result.presence for result in results} == {Presence.STORED}
        assert len(server.hgetall(gateway.shared.name(A))) == PIECES + 1
        assert await read(gateway) == await read(other)
