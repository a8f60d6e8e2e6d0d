"""Each option that connections of redis-py are given, by what it does."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import socket
from contextlib import aclosing, suppress
from typing import Any

import pytest
from samserve.stores.shared.base import Batch
from samserve.stores.shared.redis.credentials import Credentials
from samserve.stores.shared.redis.node import NodeUnavailable

from harness.cluster.node import HOST
from tests.cluster.stores import node_at
from tests.secrecy import secret
from tests.support.clock import pass_on_the_loop
from tests.support.valkey import single_server
from tests.support.waiting import until


async def test_a_server_sees_who_we_are() -> None:
    password = secret(secrets.token_hex(16))
    hashed = hashlib.sha256(password.encode()).hexdigest()
    account = f"--user gateway on #{hashed} ~* &* +@all"
    async with single_server(*account.split()) as port:
        credentials = Credentials("gateway", password)
        async with aclosing(node_at(port, credentials)) as node:
            who, info = await node.run(Batch([("ACL", "WHOAMI"), ("CLIENT", "INFO")]))

    seen = dict(pair.split("=", 1) for pair in info.decode().split())
    assert who == b"gateway"
    assert seen["laddr"] == f"{HOST}:{port}"
    shown = {name: seen[name] for name in ("name", "resp", "lib-name", "lib-ver")}
    assert shown == {"name": "samserve", "resp": "2", "lib-name": "", "lib-ver": ""}


async def running(asked: asyncio.Task[Any]) -> bool:
    """Let what can go on do so, and tell whether it waits."""
    for _ in range(20):
        await asyncio.sleep(0)
    return not asked.done()


async def test_a_connection_has_its_own_time_to_open() -> None:
    with socket.socket() as full:
        full.bind((HOST, 0))
        full.listen(0)
        # With these it takes no more, and the kernel lets others wait.
        before = [socket.socket() for _ in range(4)]
        for each in before:
            each.setblocking(False)
            with suppress(BlockingIOError):
                each.connect(full.getsockname())
        async with aclosing(node_at(full.getsockname()[1], timeout_s=1000, connect_s=100)) as node:
            asked = asyncio.create_task(node.run(Batch([("PING",)])))
            assert await running(asked)
            await pass_on_the_loop(50)
            assert await running(asked)
            await pass_on_the_loop(60)
            await until(asked.done)
            with pytest.raises(NodeUnavailable, match="Timeout connecting"):
                await asked
        for each in before:
            each.close()


async def test_an_answer_has_the_time_of_the_whole_call() -> None:
    heard, answer, closed = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # What opens the connection is answered at once, PING later.
        while b"PING" not in (data := await reader.read(1 << 16)):
            writer.write(b"+OK\r\n" * data.count(b"CLIENT"))
        heard.set()
        await answer.wait()
        writer.write(b"+PONG\r\n")
        await writer.drain()
        await reader.read()
        writer.close()
        await writer.wait_closed()
        closed.set()

    async with await asyncio.start_server(talk, HOST, 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with aclosing(node_at(port, timeout_s=1000, connect_s=100)) as node:
            asked = asyncio.create_task(node.run(Batch([("PING",)])))
            await until(heard.is_set)
            await pass_on_the_loop(900)
            assert await running(asked)
            answer.set()
            assert await asked == [b"PONG"]
        await until(closed.is_set)


async def test_a_connection_that_breaks_is_not_tried_again() -> None:
    opened: list[int] = []
    closed = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened.append(len(opened))
        await reader.read(1 << 16)
        writer.close()
        await writer.wait_closed()
        closed.set()

    async with await asyncio.start_server(talk, HOST, 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with aclosing(node_at(port)) as node:
            with pytest.raises(NodeUnavailable):
                await node.run(Batch([("PING",)]))
        await until(closed.is_set)
    assert len(opened) == 1
