"""Real handshakes on the API listener."""

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
from tests.support.waiting import BOUND_S, until

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
    """How a call ends."""
    async with connected(service, credentials) as stub:
        try:
            await stub.ListModels(pb.ListModelsRequest(), timeout=BOUND_S)
        except grpc.aio.AioRpcError as error:
            return error.code().name
    return "OK"


@pytest.fixture
def server_pem(tmp_path: Path, authority: trustme.CA) -> Pem:
    return write_pem(tmp_path / "server", authority.issue_cert("localhost"))


async def test_a_client_that_trusts_the_ca_is_served(
    authority: trustme.CA, server_pem: Pem
) -> None:
    async with serving(server_pem.settings()) as service:
        assert await code(service, channel_credentials(authority)) == "OK"


async def test_an_expired_certificate_is_not_trusted(tmp_path: Path, authority: trustme.CA) -> None:
    issued = authority.issue_cert("localhost", not_before=LONG_AGO, not_after=YESTERDAY)
    async with serving(write_pem(tmp_path, issued).settings()) as service:
        assert await code(service, channel_credentials(authority)) == "UNAVAILABLE"


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated:DeprecationWarning")
async def test_old_versions_of_tls_are_refused(authority: trustme.CA, server_pem: Pem) -> None:
    async with serving(server_pem.settings()) as service:
        outcomes = [
            await asyncio.to_thread(handshake, service, authority, version)
            for version in ("TLSv1_1", "TLSv1_2", "TLSv1_3")
        ]

    assert outcomes == ["refused by the server", "spoken", "spoken"]


@contextmanager
def shaken(service: Running, authority: trustme.CA, version: str = "") -> Iterator[ssl.SSLSocket]:
    """A connection of bare TLS, in one version if it is named."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    context.set_alpn_protocols(["h2"])
    if version:
        # Otherwise OpenSSL would not even ask for one that is old.
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    host, port = service.address.rsplit(":", 1)
    with (
        socket.create_connection((host, int(port)), timeout=BOUND_S) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as wrapped,
    ):
        yield wrapped


def handshake(service: Running, authority: trustme.CA, version: str) -> str:
    """Try one version of TLS with everything else allowed, as an old client would."""
    try:
        with shaken(service, authority, version):
            return "spoken"
    except ssl.SSLError as error:
        # gRPC hangs up when it sees the version; our own refusal would read otherwise.
        hung_up = error.reason == "UNEXPECTED_EOF_WHILE_READING" or "ALERT" in error.reason
        return "refused by the server" if hung_up else str(error)


async def test_mutual_tls_wants_a_certificate_of_the_client_ca(
    tmp_path: Path, authority: trustme.CA, stranger: trustme.CA, server_pem: Pem
) -> None:
    tls = server_pem.settings(client_ca_file=ca_file(tmp_path, authority))
    known = authority.issue_cert("client.test")
    unknown = stranger.issue_cert("client.test")
    expired = authority.issue_cert("client.test", not_before=LONG_AGO, not_after=YESTERDAY)

    async with serving(tls) as service:
        outcomes = [
            await code(service, channel_credentials(authority, client))
            for client in (known, None, unknown, expired)
        ]

    assert outcomes == ["OK", "UNAVAILABLE", "UNAVAILABLE", "UNAVAILABLE"]


async def test_only_the_identities_on_the_list_are_let_in(
    tmp_path: Path, authority: trustme.CA, server_pem: Pem
) -> None:
    tls = server_pem.settings(
        client_ca_file=ca_file(tmp_path, authority),
        client_identities="annotator.test, pipeline.test",
    )
    async with serving(tls) as service:
        outcomes = [
            await code(service, channel_credentials(authority, authority.issue_cert(name)))
            for name in ("annotator.test", "pipeline.test", "somebody.test", "annotator.test.evil")
        ]

    assert outcomes == ["OK", "OK", "PERMISSION_DENIED", "PERMISSION_DENIED"]


@pytest.mark.parametrize(
    ("listed", "issued", "let_in"),
    [
        ("10.0.0.1", {"names": ["10.0.0.1"]}, False),
        ("a@pipeline.test", {"names": ["a@pipeline.test"]}, False),
        ("pipeline.test", {"names": ["other.test", "pipeline.test"]}, True),
        ("pipeline", {"names": [], "common_name": "pipeline"}, True),
        ("pipeline", {"names": ["other.test"], "common_name": "pipeline"}, False),
    ],
    ids=["address", "mailbox", "second name", "common name", "common name beside another"],
)
async def test_identities_are_names_of_hosts_or_the_common_name(
    tmp_path: Path,
    authority: trustme.CA,
    server_pem: Pem,
    listed: str,
    issued: dict[str, Any],
    let_in: bool,
) -> None:
    tls = server_pem.settings(client_ca_file=ca_file(tmp_path, authority), client_identities=listed)
    client = authority.issue_cert(*issued["names"], common_name=issued.get("common_name"))
    async with serving(tls) as service:
        outcome = await code(service, channel_credentials(authority, client))

    assert outcome == ("OK" if let_in else "PERMISSION_DENIED")


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
                    await stub.ListModels(pb.ListModelsRequest(), timeout=BOUND_S)
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

    # A call that had failed would have ended the group.
    assert served == [serial_of(content / "server.crt") for content in contents]


async def changed(service: Running, authority: trustme.CA, before: int) -> int:
    """Wait until new connections get another certificate."""
    async with asyncio.timeout(BOUND_S):
        while (now := await asyncio.to_thread(serial, service, authority)) == before:
            await asyncio.sleep(0.05)
    return now


def serial(service: Running, authority: trustme.CA) -> int:
    """The serial number of the certificate that a new connection gets."""
    with shaken(service, authority) as wrapped:
        return x509.load_der_x509_certificate(wrapped.getpeercert(True) or b"").serial_number


def serial_of(path: Path) -> int:
    return x509.load_pem_x509_certificate(path.read_bytes()).serial_number


@pytest.mark.parametrize("damage", ["half written", "key of another", "gone"])
async def test_a_certificate_that_got_worse_is_not_taken(
    tmp_path: Path, authority: trustme.CA, server_pem: Pem, damage: str
) -> None:
    other = write_pem(tmp_path / "other", authority.issue_cert("localhost"))
    good = server_pem.key.read_bytes()

    async with serving(server_pem.settings()) as service:
        before = await asyncio.to_thread(serial, service, authority)
        match damage:
            case "half written":
                server_pem.key.write_bytes(good[: len(good) // 2])
            case "key of another":
                shutil.copy(other.key, server_pem.key)
            case "gone":
                server_pem.key.unlink()
        await until_in_order(service, 0.0)

        assert await asyncio.to_thread(serial, service, authority) == before
        assert await code(service, channel_credentials(authority)) == "OK"
        shutil.copy(other.cert, server_pem.cert)
        shutil.copy(other.key, server_pem.key)
        await until_in_order(service, 1.0)
        assert await asyncio.to_thread(serial, service, authority) == serial_of(other.cert)


async def until_in_order(service: Running, value: float) -> None:
    """Wait for what the metric says of the certificate's files."""
    of = ("samserve_file_in_order", {"file": "TLS certificate"})
    await until(lambda: service.metrics.registry.get_sample_value(*of) == value)


async def test_a_server_does_not_start_with_files_that_cannot_be_used(
    tmp_path: Path, authority: trustme.CA, server_pem: Pem
) -> None:
    other = write_pem(tmp_path / "other", authority.issue_cert("localhost"))
    for tls, problem in [
        ({"cert_file": server_pem.cert, "key_file": other.key}, "is not the key of"),
        ({"cert_file": server_pem.cert, "key_file": tmp_path / "none"}, "No such file"),
        ({"cert_file": server_pem.key, "key_file": server_pem.key}, "not made of certificates"),
        ({"cert_file": server_pem.cert, "key_file": server_pem.cert}, "private key"),
    ]:
        with pytest.raises(Misconfigured, match=problem):
            async with serving(tls):
                pass


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "samserve.test"])
def test_plaintext_beyond_loopback_must_be_asked_for(host: str, server_pem: Pem) -> None:
    with pytest.raises(ValueError, match="is not loopback"):
        settings_with(server={"host": host})

    settings_with(server={"host": host, "plaintext": True})
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
def test_settings_that_belong_together_are_wanted_together(given: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="need"):
        settings_with(tls=given)
