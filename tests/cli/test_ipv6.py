"""Listeners, commands, the client and traces over IPv6, and over both versions of IP."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from samserve.client import Client
from samserve.system import addresses

from harness.otlp import Receiver
from tests import sample_images
from tests.cli.conftest import FAKE, Command, server_process
from tests.conftest import serving, settings_with

FAMILIES = {
    "127.0.0.1": {"127.0.0.1"},
    "::1": {"::1"},
    "::": {"127.0.0.1", "::1"},
}


@pytest.mark.parametrize("host", FAMILIES)
async def test_api_and_admin_listen_on_the_configured_host(host: str) -> None:
    server = {"host": host, "admin_host": host, "allow_plaintext": True}
    async with serving(settings_with(server=server, engine={"kind": "fake"})) as (service, _):
        api, admin = (addresses.split(each) for each in (service.address, service.admin_address))
        assert (api[0], admin[0]) == (host, host)
        for address in ("127.0.0.1", "::1"):
            expected = address in FAMILIES[host]
            assert accepts_connections(address, admin[1]) == expected
            assert accepts_connections(address, api[1]) == expected
            if expected:
                async with Client(addresses.join(address, api[1])) as client:
                    assert (await client.embed(sample_images.png())).model == "fake"


def accepts_connections(address: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as client:
        return client.connect_ex((address, port)) == 0


def test_commands_use_a_server_on_ipv6(samserve: Command, image: Path) -> None:
    flags = ("--host", "::1", "--set", "server.admin_host=[::1]")
    with server_process(*flags) as served:
        address = served.address
        assert address.startswith("[::1]:")
        embedded = samserve("embed", image, "--server", address)
        doctor = samserve("doctor", "--server", address)

    assert (embedded.code, doctor.code) == (0, 0), embedded.err + doctor.out
    assert f"ok       server: {address} is ready" in doctor.out


async def test_stats_read_the_admin_listener_over_ipv6(samserve: Command) -> None:
    server = {"admin_host": "::1"}
    async with serving(settings_with(server=server, engine={"kind": "fake"})) as (service, _):
        _, port = addresses.split(service.admin_address)
        flags = ("--set", "server.admin_host=::1", "--set", f"server.admin_port={port}")
        stats = samserve("cache", "stats", "--json", "-", *flags)

    assert stats.code == 0, stats.err
    assert json.loads(stats.out)["gateway"]["address"] == f"[::1]:{port}"


@pytest.mark.parametrize("section", ["host", "admin_host"])
def test_an_address_of_another_machine_is_reported_with_the_reason(
    samserve: Command, section: str
) -> None:
    # An address reserved for documentation, which no machine has.
    flags = ("--set", f"server.{section}=2001:db8::1", "--set", "server.allow_plaintext=true")
    result = samserve("serve", "--port", 0, "--admin-port", 0, *flags, *FAKE)

    assert result.code == 1
    assert result.error == "cannot listen on [2001:db8::1]:0: Cannot assign requested address"


async def test_spans_are_sent_over_ipv6() -> None:
    with Receiver(host="::1") as receiver:
        trace = {"endpoint": f"http://{receiver.grpc_address}", "sampling_ratio": 1.0}
        settings = settings_with(trace=trace, engine={"kind": "fake"})
        async with serving(settings) as (service, _), Client(service.address) as client:
            await client.embed(sample_images.png())

        assert receiver.grpc_address.startswith("[::1]:")
        assert any(span.name.endswith("/Embed") for span in receiver.spans)
