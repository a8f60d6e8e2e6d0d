"""A cluster whose nodes have IPv6 addresses: found, redirected to, and shown."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import redis
from redis.crc import key_slot
from samserve.system.addresses import join

from tests.cli.conftest import Command, samserve
from tests.cluster.stores import key, store_over
from tests.support.valkey import single_server
from tests.support.waiting import until

__all__ = ["samserve"]

HOST = "::1"


@pytest.fixture
async def two_nodes(tmp_path: Path) -> AsyncIterator[list[redis.Redis]]:
    """Two masters that know each other; the first owns every slot."""
    async with AsyncExitStack() as stack:
        nodes = []
        for name in ("first", "second"):
            (tmp_path / name).mkdir()
            options = ("--cluster-enabled", "yes", "--dir", str(tmp_path / name))
            port = await stack.enter_async_context(single_server(*options, host=HOST))
            nodes.append(stack.enter_context(redis.Redis(host=HOST, port=port, protocol=2)))
        nodes[0].execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        nodes[0].execute_command("CLUSTER", "MEET", HOST, port)
        await until(lambda: all(b"cluster_state:ok" in info(each) for each in nodes))
        yield nodes


def info(client: redis.Redis) -> bytes:
    return client.execute_command("CLUSTER", "INFO", NEVER_DECODE=[]) or b""


async def test_nodes_are_found_and_redirected_to_over_ipv6(
    two_nodes: list[redis.Redis], samserve: Command
) -> None:
    first, second = two_nodes
    places = [join(HOST, each.connection_pool.connection_kwargs["port"]) for each in two_nodes]
    moved, stays = key("a" * 64), key("b" * 64)
    async with store_over(places[0], refresh_s=600.0) as gateway:
        await gateway.put(stays, 2.0)
        assert [each.address for each in gateway.client.nodes] == places[:1]
        slot = key_slot(gateway.cache.name(moved))
        for each in (second, first):
            each.execute_command("CLUSTER", "SETSLOT", slot, "NODE", node_id(second))
        # Its map says the first, which answers with MOVED and an address without brackets.
        await gateway.put(moved, 3.0)

        assert places[1] in [each.address for each in gateway.client.nodes]
        assert second.dbsize() == 1
    async with store_over(places[1]) as other:
        assert await other.get(moved) == 3.0
        assert await other.get(stays) == 2.0

    # There is no gateway any more, which makes the exit code 1.
    asked = ("--set", f"cache.nodes={places[0]}", "--set", "server.admin_port=1", "--json", "-")
    stats = await asyncio.to_thread(samserve, "cache", "stats", *asked)
    shown = json.loads(stats.out)["cluster"]["nodes"]
    assert sorted(each["address"] for each in shown) == sorted(places)
    assert all(each["reachable"] for each in shown)


def node_id(client: redis.Redis) -> str:
    found = client.execute_command("CLUSTER", "MYID")
    return found.decode() if isinstance(found, bytes) else str(found)
