"""What gRPC says in its own words is followed by what to do about it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from samserve.cli.main import main
from samserve.client import Client, DeadlineExceeded, Internal, SamserveClientError, Unavailable
from samserve.v1 import samserve_pb2 as pb

from tests.client import scripted
from tests.client.scripted import Scripted
from tests.cluster.relays import answering, relay
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
        async with scripted.serving(None, server) as target:
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

    async with scripted.serving(Waiting()) as address, AsyncExitStack() as relayed:
        port = await relayed.enter_async_context(relay(int(address.rpartition(":")[2])))
        async with Client(f"127.0.0.1:{port}") as client:
            search = client.automask("id")
            await anext(search)
            # Ends its connection as the death of a process does.
            await relayed.aclose()
            with pytest.raises(Unavailable, match="has ended during the call: repeat it"):
                await anext(search)


async def test_a_page_is_not_an_api() -> None:
    page = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"
    async with answering(99, page) as (port, _):
        said = await message(f"127.0.0.1:{port}")

    assert "this is no gRPC port" in said


async def test_other_statuses_of_grpc_say_what_to_do_as_well() -> None:
    servicer = Scripted(grpc.StatusCode.DEADLINE_EXCEEDED)
    async with scripted.serving(servicer) as address, Client(address) as client:
        with pytest.raises(DeadlineExceeded, match=r"as written; .* raise timeout_s"):
            await client.models()
    servicer = Scripted(grpc.StatusCode.INTERNAL)
    async with scripted.serving(servicer) as address, Client(address) as client:
        with pytest.raises(Internal, match=r"^as written$"):
            await client.models()


async def test_commands_name_their_options(
    issued: Issued, capsys: pytest.CaptureFixture[str]
) -> None:
    async with scripted.serving(None, issued.pair) as target:
        code = await asyncio.to_thread(main, ["models", "--server", target])

    assert code == 1
    assert "--ca FILE" in capsys.readouterr().err
