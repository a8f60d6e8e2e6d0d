"""Listeners, commands, the client and traces, over IPv6 and over both."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from samserve.client import Client
from samserve.system import addresses

from harness.otlp import Receiver
from tests import pictures
from tests.cli.conftest import FAKE, Command, server_process
from tests.conftest import serving, settings_with

FAMILIES = {
    "127.0.0.1": {"127.0.0.1"},
    "::1": {"::1"},
    "::": {"127.0.0.1", "::1"},
}


@pytest.mark.parametrize("host", FAMILIES)
async def test_api_and_admin_listen_where_the_host_says(host: str) -> None:
    server = {"host": host, "admin_host": host, "plaintext": True}
    async with serving(settings_with(server=server, engine={"kind": "fake"})) as (service, _):
        api, admin = (addresses.split(each) for each in (service.address, service.admin_address))
        assert (api[0], admin[0]) == (host, host)
        for address in ("127.0.0.1", "::1"):
            answers = address in FAMILIES[host]
            assert takes_connections(address, admin[1]) == answers
            assert takes_connections(address, api[1]) == answers
            if answers:
                async with Client(addresses.join(address, api[1])) as client:
                    assert (await client.embed(pictures.png())).model == "fake"


def takes_connections(address: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as client:
        return client.connect_ex((address, port)) == 0


def test_commands_find_a_server_on_ipv6(samserve: Command, image: Path) -> None:
    flags = ("--host", "::1", "--set", "server.admin_host=[::1]")
    with server_process(*flags) as served:
        address = served.address
        assert address.startswith("[::1]:")
        embedded = samserve("embed", image, "--server", address)
        doctor = samserve("doctor", "--server", address)

    assert (embedded.code, doctor.code) == (0, 0), embedded.err + doctor.out
    assert f"ok       server: {address} is ready" in doctor.out


async def test_the_admin_listener_is_asked_over_ipv6(samserve: Command) -> None:
    server = {"admin_host": "::1"}
    async with serving(settings_with(server=server, engine={"kind": "fake"})) as (service, _):
        _, port = addresses.split(service.admin_address)
        flags = ("--set", "server.admin_host=::1", "--set", f"server.admin_port={port}")
        stats = samserve("cache", "stats", "--json", "-", *flags)

    assert stats.code == 0, stats.err
    assert json.loads(stats.out)["gateway"]["address"] == f"[::1]:{port}"


@pytest.mark.parametrize("section", ["host", "admin_host"])
def test_a_host_that_is_not_here_is_told_with_the_reason(samserve: Command, section: str) -> None:
    # Of the addresses that are for documentation: no machine has it.
    flags = ("--set", f"server.{section}=2001:db8::1", "--set", "server.plaintext=true")
    ended = samserve("serve", "--port", 0, "--admin-port", 0, *flags, *FAKE)

    assert ended.code == 1
    assert ended.error == "cannot listen on [2001:db8::1]:0: Cannot assign requested address"


async def test_spans_are_sent_over_ipv6() -> None:
    with Receiver(host="::1") as receiver:
        trace = {"endpoint": f"http://{receiver.grpc_address}", "ratio": 1.0}
        settings = settings_with(trace=trace, engine={"kind": "fake"})
        async with serving(settings) as (service, _), Client(service.address) as client:
            await client.embed(pictures.png())

        assert receiver.grpc_address.startswith("[::1]:")
        assert any(span.name.endswith("/Embed") for span in receiver.spans)
