"""TLS of the HTTP listener: the certificate of the API, client certificates, and reloads."""

from __future__ import annotations

import shutil
import ssl
from pathlib import Path

import pytest
import trustme
from samserve.v1 import samserve_pb2 as pb

from tests.http.clients import PROTOCOLS, HttpCaller
from tests.http.serving import http_service
from tests.http.wire import JSON, SERVICE, connected
from tests.rpc.errors import failure_of
from tests.security.credentials import KeyFile, Pem, bearer, ca_file, mount, write_pem
from tests.support.waiting import until

LIST = SERVICE + "ListModels"
REQUEST = pb.ListModelsRequest()


def client_tls(authority: trustme.CA, client: trustme.LeafCert | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())
    if client is not None:
        client.configure_cert(context)
    return context


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_an_api_key_over_tls(
    protocol: str, authority: trustme.CA, server_pem: Pem, key_file: KeyFile
) -> None:
    key = key_file.add("acme", "embed")
    auth = {"api_keys_file": key_file.path}
    async with http_service(tls=server_pem.settings(), auth=auth) as service:
        assert service.http_address.startswith("https://")
        caller = HttpCaller(service.http_address, protocol, client_tls(authority))

        assert (await caller.call("ListModels", REQUEST, bearer(key))).models
        failure = await failure_of(caller.call("ListModels", REQUEST))
        assert failure.reason == "UNAUTHENTICATED"


async def test_plaintext_and_old_versions_of_tls_are_rejected(
    authority: trustme.CA, server_pem: Pem
) -> None:
    async with http_service(tls=server_pem.settings()) as service:
        plain = service.http_address.replace("https://", "http://")
        async with connected(plain) as wire:
            wire.send(wire.head(LIST, [JSON]))
            assert b"HTTP" not in await wire.closed()
        old = client_tls(authority)
        old.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionError)):
            async with connected(service.http_address, old):
                pass
        # The listener serves on.
        caller = HttpCaller(service.http_address, "json", client_tls(authority))
        assert (await caller.call("ListModels", REQUEST)).models


async def test_client_certificates_are_credentials(
    tmp_path: Path, authority: trustme.CA, server_pem: Pem
) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(
        'version = 1\n[identities."pipeline.test"]\ntenant = "acme"\nroles = ["embed"]\n'
    )
    tls = server_pem.settings(client_ca_file=ca_file(tmp_path, authority))
    async with http_service(tls=tls, auth={"policy_file": policy}) as service:

        async def call(client: trustme.LeafCert | None) -> pb.ListModelsResponse:
            caller = HttpCaller(service.http_address, "connect", client_tls(authority, client))
            response: pb.ListModelsResponse = await caller.call("ListModels", REQUEST)
            return response

        assert (await call(authority.issue_cert("pipeline.test"))).models
        failure = await failure_of(call(authority.issue_cert("other.test")))
        assert failure.reason == "UNAUTHENTICATED"
        for client in (None, trustme.CA().issue_cert("pipeline.test")):
            with pytest.raises((ssl.SSLError, ConnectionError, EOFError)):
                await call(client)


async def test_listed_identities_are_required(
    tmp_path: Path, authority: trustme.CA, server_pem: Pem
) -> None:
    tls = server_pem.settings(
        client_ca_file=ca_file(tmp_path, authority), client_identities="front.test"
    )
    async with http_service(tls=tls) as service:
        for name, reason in (("front.test", ""), ("other.test", "PERMISSION_DENIED")):
            client = client_tls(authority, authority.issue_cert(name))
            caller = HttpCaller(service.http_address, "json", client)
            call = caller.call("ListModels", REQUEST)
            assert (await failure_of(call)).reason == reason if reason else (await call).models


async def test_a_new_certificate_is_used_from_the_next_handshake_on(
    tmp_path: Path, authority: trustme.CA
) -> None:
    other = trustme.CA(key_type=trustme.KeyType.ECDSA)
    for name, issuer in (("old", authority), ("new", other)):
        write_pem(tmp_path / name, issuer.issue_cert("localhost"))
    pem = mount(tmp_path / "mounted", tmp_path / "old")
    async with http_service(tls=pem.settings()) as service:
        async with connected(service.http_address, client_tls(authority)) as wire:
            mount(tmp_path / "mounted", tmp_path / "new")

            async def trusts_the_new_one() -> bool:
                try:
                    async with connected(service.http_address, client_tls(other)):
                        return True
                except ssl.SSLError:
                    return False

            await until(trusts_the_new_one)
            # An open connection stays.
            assert (await wire.request(LIST, b"{}", [JSON])).status == 200
        with pytest.raises(ssl.SSLError):
            async with connected(service.http_address, client_tls(authority)):
                pass
        shutil.rmtree(tmp_path / "new")
