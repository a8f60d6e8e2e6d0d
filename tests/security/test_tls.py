"""TLS handshakes on the API listener."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from cryptography import x509
from samserve.app import Running, running
from samserve.errors import Misconfigured
from samserve.v1 import samserve_pb2 as pb
from samserve.v1 import samserve_pb2_grpc

from tests.conftest import UNLIMITED, settings_with
from tests.security.credentials import (
    Pem,
    ca_file,
    channel_credentials,
    mount,
    write_pem,
)
from tests.support.waiting import TIMEOUT_S, until

LONG_AGO = datetime.now(UTC) - timedelta(days=30)
YESTERDAY = datetime.now(UTC) - timedelta(days=1)


def serving(tls: dict[str, Any]) -> AbstractAsyncContextManager[Running]:
    return running(settings_with(tls=tls))


@asynccontextmanager
async def connected(
    service: Running, credentials: grpc.ChannelCredentials
) -> AsyncIterator[samserve_pb2_grpc.SegmentationServiceStub]:
    target = service.address.replace("127.0.0.1", "localhost")
    async with grpc.aio.secure_channel(target, credentials, options=UNLIMITED) as channel:
        yield samserve_pb2_grpc.SegmentationServiceStub(channel)


async def code(service: Running, credentials: grpc.ChannelCredentials) -> str:
    """Return the status code of a call."""
    async with connected(service, credentials) as stub:
        try:
            await stub.ListModels(pb.ListModelsRequest(), timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            return error.code().name
    return "OK"


@pytest.fixture
def server_pem(tmp_path: Path, authority: trustme.CA) -> Pem:
    return write_pem(tmp_path / "server", authority.issue_cert("localhost"))


async def test_a_client_that_trusts_the_ca_connects(authority: trustme.CA, server_pem: Pem) -> None:
    async with serving(server_pem.settings()) as service:
        assert await code(service, channel_credentials(authority)) == "OK"


async def test_an_expired_server_certificate_is_not_trusted(
    tmp_path: Path, authority: trustme.CA
) -> None:
    issued = authority.issue_cert("localhost", not_before=LONG_AGO, not_after=YESTERDAY)
    async with serving(write_pem(tmp_path, issued).settings()) as service:
        assert await code(service, channel_credentials(authority)) == "UNAVAILABLE"


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated:DeprecationWarning")
async def test_tls_before_1_2_is_rejected(authority: trustme.CA, server_pem: Pem) -> None:
    async with serving(server_pem.settings()) as service:
        outcomes = [
            await asyncio.to_thread(handshake, service, authority, version)
            for version in ("TLSv1_1", "TLSv1_2", "TLSv1_3")
        ]

    assert outcomes == ["rejected by the server", "accepted", "accepted"]


@contextmanager
def tls_connection(
    service: Running, authority: trustme.CA, version: str = ""
) -> Iterator[ssl.SSLSocket]:
    """Open a TLS connection without a gRPC client, with one version if it is named."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    context.set_alpn_protocols(["h2"])
    if version:
        # Otherwise OpenSSL would not offer an old version.
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    host, port = service.address.rsplit(":", 1)
    with (
        socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as wrapped,
    ):
        yield wrapped


def handshake(service: Running, authority: trustme.CA, version: str) -> str:
    """Try one version of TLS with all ciphers allowed, like an old client."""
    try:
        with tls_connection(service, authority, version):
            return "accepted"
    except ssl.SSLError as error:
        # gRPC closes the connection because of the version; an error of the client differs.
        closed = error.reason == "UNEXPECTED_EOF_WHILE_READING" or "ALERT" in error.reason
        return "rejected by the server" if closed else str(error)


async def test_mutual_tls_requires_a_certificate_of_the_client_ca(
    tmp_path: Path, authority: trustme.CA, untrusted_ca: trustme.CA, server_pem: Pem
) -> None:
    tls = server_pem.settings(client_ca_file=ca_file(tmp_path, authority))
    known = authority.issue_cert("client.test")
    unknown = untrusted_ca.issue_cert("client.test")
    expired = authority.issue_cert("client.test", not_before=LONG_AGO, not_after=YESTERDAY)

    async with serving(tls) as service:
        outcomes = [
            await code(service, channel_credentials(authority, client))
            for client in (known, None, unknown, expired)
        ]

    assert outcomes == ["OK", "UNAVAILABLE", "UNAVAILABLE", "UNAVAILABLE"]


async def test_only_the_listed_client_identities_are_accepted(
    tmp_path: Path, authority: trustme.CA, server_pem: Pem
) -> None:
    tls = server_pem.settings(
        client_ca_file=ca_file(tmp_path, authority),
        client_identities="annotator.test, pipeline.test",
    )
    async with serving(tls) as service:
        outcomes = [
            await code(service, channel_credentials(authority, authority.issue_cert(name)))
            for name in ("annotator.test", "pipeline.test", "other.test", "annotator.test.evil")
        ]

    assert outcomes == ["OK", "OK", "PERMISSION_DENIED", "PERMISSION_DENIED"]


@pytest.mark.parametrize(
    ("listed", "issued", "accepted"),
    [
        ("10.0.0.1", {"names": ["10.0.0.1"]}, False),
        ("a@pipeline.test", {"names": ["a@pipeline.test"]}, False),
        ("pipeline.test", {"names": ["other.test", "pipeline.test"]}, True),
        ("pipeline", {"names": [], "common_name": "pipeline"}, True),
        ("pipeline", {"names": ["other.test"], "common_name": "pipeline"}, False),
    ],
    ids=["address", "mailbox", "second name", "common name", "common name beside another"],
)
async def test_identities_are_dns_names_or_the_common_name(
    tmp_path: Path,
    authority: trustme.CA,
    server_pem: Pem,
    listed: str,
    issued: dict[str, Any],
    accepted: bool,
) -> None:
    tls = server_pem.settings(client_ca_file=ca_file(tmp_path, authority), client_identities=listed)
    client = authority.issue_cert(*issued["names"], common_name=issued.get("common_name"))
    async with serving(tls) as service:
        outcome = await code(service, channel_credentials(authority, client))

    assert outcome == ("OK" if accepted else "PERMISSION_DENIED")


async def test_certificates_rotate_under_load_without_a_failed_call(
    tmp_path: Path, authority: trustme.CA
) -> None:
    contents = [tmp_path / f"content{number}" for number in range(6)]
    for content in contents:
        write_pem(content, authority.issue_cert("localhost"))
    pem = mount(tmp_path / "mounted", contents[0])
    credentials = channel_credentials(authority)
    calls: list[str] = []
    done = asyncio.Event()

    async def keep_calling(service: Running, *, new: bool) -> None:
        while not done.is_set():
            async with connected(service, credentials) as stub:
                for _ in range(1 if new else 50):
                    await stub.ListModels(pb.ListModelsRequest(), timeout=TIMEOUT_S)
                    calls.append("new" if new else "open")

    served = []
    async with serving(pem.settings()) as service, asyncio.TaskGroup() as group:
        served.append(await asyncio.to_thread(serial, service, authority))
        for new in (True, True, False, False):
            group.create_task(keep_calling(service, new=new))
        for content in contents[1:]:
            mount(tmp_path / "mounted", content)
            served.append(await changed(service, authority, served[-1]))
        await until(lambda: min(calls.count("new"), calls.count("open")) > 10)
        done.set()

    # A failed call would have raised in the task group.
    assert served == [serial_of(content / "server.crt") for content in contents]


async def changed(service: Running, authority: trustme.CA, before: int) -> int:
    """Wait until new connections get another certificate; return its serial number."""
    async with asyncio.timeout(TIMEOUT_S):
        while (now := await asyncio.to_thread(serial, service, authority)) == before:
            await asyncio.sleep(0.05)
    return now


def serial(service: Running, authority: trustme.CA) -> int:
    """Return the serial number of the certificate of a new connection."""
    with tls_connection(service, authority) as wrapped:
        return x509.load_der_x509_certificate(wrapped.getpeercert(True) or b"").serial_number


def serial_of(path: Path) -> int:
    return x509.load_pem_x509_certificate(path.read_bytes()).serial_number


@pytest.mark.parametrize("problem", ["half written", "other key", "missing"])
async def test_an_invalid_new_certificate_is_not_used(
    tmp_path: Path, authority: trustme.CA, server_pem: Pem, problem: str
) -> None:
    other = write_pem(tmp_path / "other", authority.issue_cert("localhost"))
    good = server_pem.key.read_bytes()

    async with serving(server_pem.settings()) as service:
        before = await asyncio.to_thread(serial, service, authority)
        match problem:
            case "half written":
                server_pem.key.write_bytes(good[: len(good) // 2])
            case "other key":
                shutil.copy(other.key, server_pem.key)
            case "missing":
                server_pem.key.unlink()
        await until_reload_metric(service, 0.0)

        assert await asyncio.to_thread(serial, service, authority) == before
        assert await code(service, channel_credentials(authority)) == "OK"
        shutil.copy(other.cert, server_pem.cert)
        shutil.copy(other.key, server_pem.key)
        await until_reload_metric(service, 1.0)
        assert await asyncio.to_thread(serial, service, authority) == serial_of(other.cert)


async def until_reload_metric(service: Running, value: float) -> None:
    """Wait until the metric of the certificate's files has this value."""
    of = ("samserve_config_last_reload_successful", {"file": "TLS certificate"})
    await until(lambda: service.metrics.registry.get_sample_value(*of) == value)


async def test_a_server_does_not_start_with_invalid_certificate_files(
    tmp_path: Path, authority: trustme.CA, server_pem: Pem
) -> None:
    other = write_pem(tmp_path / "other", authority.issue_cert("localhost"))
    for tls, problem in [
        ({"cert_file": server_pem.cert, "key_file": other.key}, "does not match"),
        ({"cert_file": server_pem.cert, "key_file": tmp_path / "none"}, "No such file"),
        (
            {"cert_file": server_pem.key, "key_file": server_pem.key},
            "must contain PEM certificates",
        ),
        ({"cert_file": server_pem.cert, "key_file": server_pem.cert}, "private key"),
    ]:
        with pytest.raises(Misconfigured, match=problem):
            async with serving(tls):
                pass


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "samserve.test"])
def test_plaintext_beyond_loopback_must_be_allowed(host: str, server_pem: Pem) -> None:
    with pytest.raises(ValueError, match="is not loopback"):
        settings_with(server={"host": host})

    settings_with(server={"host": host, "allow_plaintext": True})
    settings_with(server={"host": host}, tls=server_pem.settings())
    settings_with(server={"host": "::1"})
    settings_with(server={"host": "localhost"})


@pytest.mark.parametrize(
    "given",
    [
        {"cert_file": "a"},
        {"key_file": "a"},
        {"client_ca_file": "a"},
        {"cert_file": "a", "key_file": "b", "client_identities": "c"},
    ],
)
def test_incomplete_tls_settings_are_invalid(given: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"requires|set together"):
        settings_with(tls=given)
