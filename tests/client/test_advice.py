"""Errors that gRPC itself reports are followed by advice."""

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
from tests.client.scripted import ScriptedServicer
from tests.support.certificates import Issuer
from tests.support.tcp import relay, replying_server


@dataclass
class Issued:
    """The certificate authority of the tests, and server credentials."""

    authority: Issuer
    pair: grpc.ServerCredentials
    mutual: grpc.ServerCredentials
    elsewhere: grpc.ServerCredentials


@pytest.fixture(scope="module")
def issued() -> Issued:
    authority = Issuer()
    root = authority.pem.encode()
    (cert, key), (other, other_key) = (
        authority.issue("localhost"),
        authority.issue("elsewhere.example"),
    )
    pair = [(key.encode(), cert.encode())]
    return Issued(
        authority,
        grpc.ssl_server_credentials(pair),
        grpc.ssl_server_credentials(pair, root, require_client_auth=True),
        grpc.ssl_server_credentials([(other_key.encode(), other.encode())]),
    )


async def message(target: str, credentials: grpc.ChannelCredentials | None = None) -> str:
    """Return the error text of the client for a server that it cannot call."""
    async with Client(target, credentials=credentials) as client:
        with pytest.raises(SamserveClientError) as caught:
            await client.models()
    assert caught.value.reason == ""
    return caught.value.message


async def test_failed_connections_give_advice(issued: Issued) -> None:
    trusting = grpc.ssl_channel_credentials(issued.authority.pem.encode())
    distrusting = grpc.ssl_channel_credentials(Issuer().pem.encode())
    cases: dict[str, tuple[grpc.ServerCredentials | None, grpc.ChannelCredentials | None, str]] = {
        "no TLS to TLS": (issued.pair, None, "the server may require TLS: pass credentials"),
        "TLS to none": (None, trusting, "the port does not use TLS"),
        "another CA": (issued.pair, distrusting, "pass the CA that signed it"),
        "another name": (issued.elsewhere, trusting, "connect to one of them"),
        "no certificate": (issued.mutual, trusting, "pass one with grpc.ssl_channel_credentials"),
        "no PEM": (issued.pair, grpc.ssl_channel_credentials(b"x"), "pass PEM files"),
        "another service": (None, None, "check the address"),
    }

    async def of(server: grpc.ServerCredentials | None, client: Any) -> str:
        async with scripted.serving(None, server) as target:
            return await message(target, client)

    texts = await asyncio.gather(*(of(server, client) for server, client, _ in cases.values()))
    wrong = {
        name: text
        for (name, (_, _, expected)), text in zip(cases.items(), texts, strict=True)
        if expected not in text
    }
    assert wrong == {}
    assert not any("Source Location" in text for text in texts)


async def test_unreachable_addresses_give_advice() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    refused = await message(f"127.0.0.1:{port}")
    unknown = await message("no-such-host.invalid:50051")

    assert "start the server, or correct it" in refused
    assert "correct the host name" in unknown


async def test_connection_lost_during_a_call_is_not_mistaken_for_tls() -> None:
    class Waiting(ScriptedServicer):
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
            # Closes its connection, as the end of a process does.
            await relayed.aclose()
            with pytest.raises(Unavailable, match="stopped during the call: retry it"):
                await anext(search)


async def test_http_server_is_reported_as_not_grpc() -> None:
    page = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"
    async with replying_server(99, page) as (port, _):
        text = await message(f"127.0.0.1:{port}")

    assert "this is not a gRPC port" in text


async def test_other_grpc_statuses_give_advice() -> None:
    servicer = ScriptedServicer(grpc.StatusCode.DEADLINE_EXCEEDED)
    async with scripted.serving(servicer) as address, Client(address) as client:
        with pytest.raises(DeadlineExceeded, match=r"as scripted; .* raise timeout_s"):
            await client.models()
    servicer = ScriptedServicer(grpc.StatusCode.INTERNAL)
    async with scripted.serving(servicer) as address, Client(address) as client:
        with pytest.raises(Internal, match=r"^as scripted$"):
            await client.models()


async def test_commands_name_their_tls_options(
    issued: Issued, capsys: pytest.CaptureFixture[str]
) -> None:
    async with scripted.serving(None, issued.pair) as target:
        code = await asyncio.to_thread(main, ["models", "--server", target])

    assert code == 1
    assert "--ca FILE" in capsys.readouterr().err
