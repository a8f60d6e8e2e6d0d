"""A cluster whose nodes have IPv6 addresses: found, redirected to, and shown."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import redis
from redis.crc import key_slot
from samserve.system.addresses import join

from harness.cluster.binaries import server_binary
from harness.triton.ports import free_ports
from tests.cli.conftest import Command, samserve
from tests.cluster.stores import key, store_over
from tests.support.waiting import until_sync

__all__ = ["samserve"]

HOST = "::1"
ATTEMPTS = 5


@contextmanager
def node(folder: Path, port: int) -> Iterator[redis.Redis]:
    """Run a node of Valkey on the IPv6 loopback."""
    folder.mkdir()
    bus = free_ports(1)[0]
    options = {"bind": HOST, "port": port, "cluster-port": bus, "cluster-enabled": "yes"}
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    with (folder / "log").open("wb") as log:
        program = [str(server_binary("valkey")), *flags, "--save", "", "--protected-mode", "no"]
        process = subprocess.Popen(program, cwd=folder, stdout=log, stderr=log)
    client = redis.Redis(host=HOST, port=port, protocol=2)
    try:
        until_sync(lambda: process.poll() is not None or answers(client))
        assert process.poll() is None, (folder / "log").read_text()
        yield client
    finally:
        client.close()
        process.kill()
        process.wait()


def answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


@pytest.fixture
def two_nodes(tmp_path: Path) -> Iterator[list[redis.Redis]]:
    """Two masters that know each other; the first owns every slot."""
    with ExitStack() as stack:
        ports = free_ports(2)
        nodes = [stack.enter_context(node(tmp_path / str(port), port)) for port in ports]
        first, second = nodes
        first.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        first.execute_command("CLUSTER", "MEET", HOST, ports[1], bus_port(second))
        until_sync(lambda: all(b"cluster_state:ok" in info(each) for each in nodes))
        yield nodes


def bus_port(client: redis.Redis) -> int:
    return int(client.config_get("cluster-port")["cluster-port"])


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
