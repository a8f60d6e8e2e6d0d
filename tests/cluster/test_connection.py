"""The effect of each option that is passed to connections of redis-py."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import secrets
import socket
from contextlib import aclosing, suppress
from typing import Any

import numpy as np
import pytest
from samserve.cache.shared.base import Batch
from samserve.cache.shared.redis.credentials import Credentials
from samserve.cache.shared.redis.node import NodeUnavailable

from harness.cluster.node import HOST
from tests.cluster.caches import node_client
from tests.secret_leaks import secret
from tests.support.clock import advance_loop
from tests.support.tcp import serving
from tests.support.valkey import single_server
from tests.support.waiting import until


async def test_the_server_sees_username_and_client_name() -> None:
    password = secret(secrets.token_hex(16))
    hashed = hashlib.sha256(password.encode()).hexdigest()
    account = f"--user gateway on #{hashed} ~* &* +@all"
    async with single_server(*account.split()) as port:
        credentials = Credentials("gateway", password)
        async with aclosing(node_client(port, credentials)) as node:
            username, info = await node.run(Batch([("ACL", "WHOAMI"), ("CLIENT", "INFO")]))

    seen = dict(pair.split("=", 1) for pair in info.decode().split())
    assert username == b"gateway"
    assert seen["laddr"] == f"{HOST}:{port}"
    shown = {name: seen[name] for name in ("name", "resp", "lib-name", "lib-ver")}
    assert shown == {"name": "samserve", "resp": "2", "lib-name": "", "lib-ver": ""}


async def running(call: asyncio.Task[Any]) -> bool:
    """Run the event loop for a few iterations; return whether the call still waits."""
    for _ in range(20):
        await asyncio.sleep(0)
    return not call.done()


async def test_opening_a_connection_has_its_own_timeout() -> None:
    with socket.socket() as full:
        full.bind((HOST, 0))
        full.listen(0)
        # These fill the backlog, so the kernel lets further connections wait.
        before = [socket.socket() for _ in range(4)]
        for each in before:
            each.setblocking(False)
            with suppress(BlockingIOError):
                each.connect(full.getsockname())
        async with aclosing(
            node_client(full.getsockname()[1], timeout_s=1000, connect_timeout_s=100)
        ) as node:
            call = asyncio.create_task(node.run(Batch([("PING",)])))
            assert await running(call)
            await advance_loop(50)
            assert await running(call)
            await advance_loop(60)
            await until(call.done)
            with pytest.raises(NodeUnavailable, match="Timeout connecting"):
                await call
        for each in before:
            each.close()


async def test_a_response_may_take_the_whole_timeout() -> None:
    received, respond, closed = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Commands that open the connection get replies at once, PING later.
        while b"PING" not in (data := await reader.read(1 << 16)):
            writer.write(b"+OK\r\n" * data.count(b"CLIENT"))
        received.set()
        await respond.wait()
        writer.write(b"+PONG\r\n")
        await writer.drain()
        await reader.read()
        closed.set()

    async with serving(handle) as port:
        async with aclosing(node_client(port, timeout_s=1000, connect_timeout_s=100)) as node:
            call = asyncio.create_task(node.run(Batch([("PING",)])))
            await until(received.is_set)
            await advance_loop(900)
            assert await running(call)
            respond.set()
            assert await call == [b"PONG"]
        await until(closed.is_set)


async def test_a_broken_connection_is_not_retried() -> None:
    opened: list[int] = []
    closed = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened.append(len(opened))
        await reader.read(1 << 16)
        closed.set()

    async with serving(handle) as port:
        async with aclosing(node_client(port)) as node:
            with pytest.raises(NodeUnavailable):
                await node.run(Batch([("PING",)]))
        await until(closed.is_set)
    assert len(opened) == 1


async def test_large_values_are_sent_in_portions_between_which_other_tasks_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    value = bytearray(np.random.default_rng(0).bytes((1 << 20) + 12_345))
    events: list[int] = []
    write = asyncio.StreamWriter.writelines

    def recorded(writer: asyncio.StreamWriter, pieces: list[memoryview]) -> None:
        events.append(sum(map(len, pieces)))
        write(writer, pieces)

    async def other_task() -> None:
        while True:
            events.append(0)
            await asyncio.sleep(0)

    async with single_server() as port, aclosing(node_client(port)) as node:
        await node.run(Batch([("PING",)]))
        monkeypatch.setattr(asyncio.StreamWriter, "writelines", recorded)
        other = asyncio.create_task(other_task())
        replies = await node.run(Batch([("SET", "x", value), ("GET", "x"), ("SET", "y", b"1")]))
        other.cancel()

    assert replies == [b"OK", value, b"OK"]
    sent = [each for each in events if each]
    assert len(value) < sum(sent) < len(value) + 200
    assert max(sent) <= 256 << 10
    assert all(0 in pair for pair in itertools.pairwise(events))
