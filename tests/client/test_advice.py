"""What gRPC says in its own words is followed by what to do about it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from samserve.cli.main import main
from samserve.client import Client, DeadlineExceeded, Internal, SamserveClientError, Unavailable
from samserve.v1 import samserve_pb2 as pb

from tests.client import scripted
from tests.client.scripted import Scripted
from tests.support.certificates import Issuer


@dataclass
class Issued:
    """A server's certificate, and what clients trust."""

    ours: Issuer
    pair: grpc.ServerCredentials
    mutual: grpc.ServerCredentials
    elsewhere: grpc.ServerCredentials


@pytest.fixture(scope="module")
def issued() -> Issued:
    ours = Issuer()
    root = ours.pem.encode()
    (cert, key), (other, other_key) = ours.issue("localhost"), ours.issue("elsewhere.example")
    pair = [(key.encode(), cert.encode())]
    return Issued(
        ours,
        grpc.ssl_server_credentials(pair),
        grpc.ssl_server_credentials(pair, root, require_client_auth=True),
        grpc.ssl_server_credentials([(other_key.encode(), other.encode())]),
    )


@asynccontextmanager
async def answering(credentials: grpc.ServerCredentials | None) -> AsyncIterator[str]:
    """A gRPC server without any method."""
    server = grpc.aio.server()
    if credentials is None:
        port = server.add_insecure_port("localhost:0")
    else:
        port = server.add_secure_port("localhost:0", credentials)
    await server.start()
    try:
        yield f"localhost:{port}"
    finally:
        await server.stop(None)


async def message(target: str, credentials: grpc.ChannelCredentials | None = None) -> str:
    """What the client says of a server that it cannot call."""
    async with Client(target, credentials=credentials) as client:
        with pytest.raises(SamserveClientError) as caught:
            await client.models()
    assert caught.value.reason == ""
    return caught.value.message


async def test_connections_that_fail_say_what_to_do(issued: Issued) -> None:
    trusting = grpc.ssl_channel_credentials(issued.ours.pem.encode())
    distrusting = grpc.ssl_channel_credentials(Issuer().pem.encode())
    cases: dict[str, tuple[grpc.ServerCredentials | None, grpc.ChannelCredentials | None, str]] = {
        "no TLS to TLS": (issued.pair, None, "the server may want TLS: give credentials"),
        "TLS to none": (None, trusting, "there is no TLS at this port"),
        "another CA": (issued.pair, distrusting, "give the CA that has signed it"),
        "another name": (issued.elsewhere, trusting, "connect by one of them"),
        "no certificate": (issued.mutual, trusting, "give one with grpc.ssl_channel_credentials"),
        "no PEM": (issued.pair, grpc.ssl_channel_credentials(b"x"), "give PEM files"),
        "another service": (None, None, "check the address"),
    }

    async def of(server: grpc.ServerCredentials | None, client: Any) -> str:
        async with answering(server) as target:
            return await message(target, client)

    texts = await asyncio.gather(*(of(server, client) for server, client, _ in cases.values()))
    said = dict(zip(cases, texts, strict=True))

    assert {name: text for name, text in said.items() if cases[name][2] not in text} == {}
    assert not any("Source Location" in text for text in said.values())


async def test_what_does_not_answer_says_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    refused = await message(f"127.0.0.1:{port}")
    unknown = await message("no-such-host.invalid:50051")

    assert "start the server, or correct host and port" in refused
    assert "correct the name of the host" in unknown


async def test_a_server_that_ends_during_a_call_is_not_taken_for_one_with_tls() -> None:
    class Waiting(Scripted):
        async def AutoMask(  # noqa: N802 - a name of the protocol
            self, request: pb.AutoMaskRequest, context: Any
        ) -> AsyncIterator[pb.AutoMaskResponse]:
            yield pb.AutoMaskResponse(progress=pb.AutoMaskProgress())
            await asyncio.Event().wait()

    waiting = Waiting(failures=0, code=grpc.StatusCode.OK)
    async with (
        scripted.serving(waiting) as address,
        passed_on(address) as (target, end),
        Client(target) as client,
    ):
        search = client.automask("id")
        await anext(search)
        end()
        with pytest.raises(Unavailable, match="has ended during the call: repeat it"):
            await anext(search)


@asynccontextmanager
async def passed_on(address: str) -> AsyncIterator[tuple[str, Callable[[], None]]]:
    """Another port of a server, and what ends it and its connection as the death of a process."""
    writers: list[asyncio.StreamWriter] = []

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        while data := await reader.read(1 << 16):
            writer.write(data)
        writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(*address.split(":"))
        await asyncio.gather(copy(reader, back), copy(there, writer))

    relay = await asyncio.start_server(connect, "127.0.0.1", 0)
    port = relay.sockets[0].getsockname()[1]

    def end() -> None:
        relay.close()
        for writer in writers:
            writer.close()

    yield f"127.0.0.1:{port}", end
    await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)


async def test_a_page_is_not_an_api() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    page = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with page:
        said = await message(f"127.0.0.1:{page.sockets[0].getsockname()[1]}")

    assert "this is no gRPC port" in said


async def test_other_statuses_of_grpc_say_what_to_do_as_well() -> None:
    servicer = Scripted(failures=9, code=grpc.StatusCode.DEADLINE_EXCEEDED)
    async with scripted.serving(servicer) as address, Client(address) as client:
        with pytest.raises(DeadlineExceeded, match=r"as written; .* raise timeout_s"):
            await client.models()
    servicer = Scripted(failures=9, code=grpc.StatusCode.INTERNAL)
    async with scripted.serving(servicer) as address, Client(address) as client:
        with pytest.raises(Internal, match=r"^as written$"):
            await client.models()


async def test_commands_name_their_options(
    issued: Issued, capsys: pytest.CaptureFixture[str]
) -> None:
    async with answering(issued.pair) as target:
        code = await asyncio.to_thread(main, ["models", "--server", target])

    assert code == 1
    assert "--ca FILE" in capsys.readouterr().err


async def test_an_address_in_ipv6_is_reached() -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("this system has no IPv6")
    server = grpc.aio.server()
    port = server.add_insecure_port("[::1]:0")
    await server.start()
    try:
        async with Client(f"[::1]:{port}") as client:
            # It answers that it has no such method.
            with pytest.raises(SamserveClientError) as caught:
                await client.models()
    finally:
        await server.stop(None)

    assert not isinstance(caught.value, Unavailable)
    assert caught.value.code == "UNIMPLEMENTED"
