"""A cluster with IPv6 addresses: discovery, redirects, and `cache stats`."""

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
from tests.cluster.caches import key, open_cache
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


async def test_discovery_and_redirects_work_over_ipv6(
    two_nodes: list[redis.Redis], samserve: Command
) -> None:
    first, second = two_nodes
    addresses = [join(HOST, each.connection_pool.connection_kwargs["port"]) for each in two_nodes]
    moved, stays = key("a" * 64), key("b" * 64)
    async with open_cache(addresses[0], topology_refresh_interval_s=600.0) as gateway:
        await gateway.put(stays, 2.0)
        assert [each.address for each in gateway.client.nodes] == addresses[:1]
        slot = key_slot(gateway.shared.name(moved))
        for each in (second, first):
            each.execute_command("CLUSTER", "SETSLOT", slot, "NODE", node_id(second))
        # In its topology the first node owns the slot, and replies MOVED with an address without
        # brackets.
        await gateway.put(moved, 3.0)

        assert addresses[1] in [each.address for each in gateway.client.nodes]
        assert second.dbsize() == 1
    async with open_cache(addresses[1]) as other:
        assert await other.get(moved) == 3.0
        assert await other.get(stays) == 2.0

    # No gateway runs, so the exit code is 1.
    arguments = (
        "--set",
        f"cache.shared.nodes={addresses[0]}",
        "--set",
        "server.admin_port=1",
        "--json",
        "-",
    )
    stats = await asyncio.to_thread(samserve, "cache", "stats", *arguments)
    shown = json.loads(stats.out)["cluster"]["nodes"]
    assert sorted(each["address"] for each in shown) == sorted(addresses)
    assert all(each["reachable"] for each in shown)


def node_id(client: redis.Redis) -> str:
    found = client.execute_command("CLUSTER", "MYID")
    return found.decode() if isinstance(found, bytes) else str(found)
