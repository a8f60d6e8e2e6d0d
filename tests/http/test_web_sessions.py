"""Sessions of the web page on a server without credentials."""

from __future__ import annotations

import hmac
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from samserve.app import Running
from samserve.errors import SessionRequired, SessionTokenInvalid
from samserve.http.web import endpoints
from samserve.security import sessions
from samserve.security.authenticator import Authenticator
from samserve.security.sessions import SessionAuthenticator, Sessions
from samserve.settings import load
from samserve.v1 import samserve_pb2 as pb

from tests import sample_images
from tests.conftest import stub_of
from tests.http.clients import PROTOCOLS, HttpCaller
from tests.http.test_tls import client_tls
from tests.http.web_pages import (
    LIST,
    LIST_MODELS,
    SESSION,
    credential_of,
    exchange,
    page_service,
    reason,
    send,
    session_of,
    token_of,
    write_page,
)
from tests.http.wire import JSON, Response, connected
from tests.metric_values import total
from tests.secret_leaks import secret
from tests.security.credentials import KeyFile, Pem, bearer, ca_file, channel_credentials

AUTOMASK = pb.AutoMaskRequest(
    image=pb.Image(encoded=sample_images.png(40, 50)),
    options=pb.AutoMaskOptions(points_per_side=2),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(tmp_path_factory.mktemp("page"))


@pytest.fixture
async def service(folder: Path) -> AsyncIterator[Running]:
    async with page_service(folder) as running:
        yield running


@pytest.fixture
def shown(service: Running) -> list[str]:
    """The lines that the user sees."""
    lines: list[str] = []
    service.show_page(lines.append)
    return lines


async def listed(service: Running, *headers: tuple[str, str]) -> Response:
    return await send(service, LIST, [JSON, *headers], b"{}", method="POST")


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_every_call_over_http_needs_a_session(service: Running, protocol: str) -> None:
    caller = HttpCaller(service.http_address, protocol)
    for name, request in (("ListModels", LIST_MODELS), ("AutoMask", AUTOMASK)):
        for metadata in ([], bearer("x" * 43), [("authorization", "Basic eDp4")]):
            failure = await caller.failure(name, request, metadata)
            assert (failure.code.name, failure.reason) == ("UNAUTHENTICATED", "SESSION_REQUIRED")

    session = [await session_of(service)]
    assert (await caller.call("ListModels", LIST_MODELS, session)).models
    assert await caller.messages("AutoMask", AUTOMASK, session)


async def test_a_decoder_needs_a_session(service: Running) -> None:
    path = f"/decoders/{'0' * 64}"
    response = await send(service, path)
    assert (response.status, reason(response)) == (401, "SESSION_REQUIRED")

    response = await send(service, path, [await session_of(service)])
    assert (response.status, reason(response)) == (404, "DECODER_NOT_FOUND")


async def test_calls_over_grpc_need_none(service: Running) -> None:
    async with stub_of(service.address) as stub:
        assert (await stub.ListModels(LIST_MODELS)).models


async def test_a_session_is_one_credential_in_one_header(service: Running) -> None:
    name, value = await session_of(service)
    credential = value.removeprefix("Bearer ")
    for accepted in (f"bearer {credential}", f"BEARER  {credential}"):
        assert (await listed(service, (name, accepted))).status == 200
    for refused in (credential, f"Bearer {credential}x", f"Digest {credential}", "Bearer "):
        assert (await listed(service, (name, refused))).status == 401
    assert (await listed(service, (name, value), (name, value))).status == 401


async def test_a_token_works_once_and_another_one_is_shown(
    service: Running, shown: list[str]
) -> None:
    address = service.http_address
    token = token_of(shown[0])
    assert shown == [f"Web page: {address}/#token={token}"]

    credential = credential_of(await exchange(service, token))
    used = await exchange(service, token)

    assert (used.status, reason(used)) == (401, "SESSION_TOKEN_INVALID")
    assert used.headers["cache-control"] == "no-store"
    another = token_of(shown[1])
    assert shown[1:] == [f"Web page, for another browser: {address}/#token={another}"]
    assert token != another
    assert credential_of(await exchange(service, another)) != credential
    # Both sessions continue.
    assert (await listed(service, ("authorization", f"Bearer {credential}"))).status == 200
    assert len(shown) == 3


async def test_a_wrong_token_changes_nothing(service: Running, shown: list[str]) -> None:
    token = token_of(shown[0])
    for wrong in ("", "x", token[:-1], f"{token}x", token.swapcase(), "\ud800", "é" * 43):
        response = await exchange(service, wrong)
        assert (response.status, reason(response)) == (401, "SESSION_TOKEN_INVALID")
    registry = service.metrics.registry
    refused = total(registry, "samserve_http_refused_total", reason="SESSION_TOKEN_INVALID")
    assert (refused, len(shown)) == (7, 1)
    credential_of(await exchange(service, token))


async def test_without_a_shown_token_none_is_valid(service: Running) -> None:
    for token in ("", "x"):
        assert (await exchange(service, token)).status == 401


async def test_a_session_ends_with_the_server(service: Running, folder: Path) -> None:
    session = await session_of(service)
    async with page_service(folder) as other:
        assert (await listed(service, session)).status == 200
        assert (await listed(other, session)).status == 401


async def test_the_oldest_session_ends_when_there_are_too_many(
    service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "MAX_SESSIONS", 3)
    begun = [await session_of(service) for _ in range(5)]

    assert [(await listed(service, each)).status for each in begun] == [401, 401, 200, 200, 200]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        *((b"", 400), (b"{}", 400), (b"[]", 400), (b'"x"', 400), (b'{"token": 1}', 400)),
        *((b'{"token": null}', 400), (b"[" * 1000, 400), (b"\xff\xfe", 400), (b"{'token'", 400)),
        *((b'{"token": "' + b"x" * 2000 + b'"}', 400), (b'{"token": "x", "other": 1}', 401)),
    ],
)
async def test_malformed_requests_are_errors(service: Running, body: bytes, status: int) -> None:
    response = await send(service, SESSION, [JSON], body, method="POST")

    assert response.status == status
    assert reason(response) in {"INVALID_ARGUMENT", "SESSION_TOKEN_INVALID"}
    assert b"xxx" not in response.body


async def test_other_methods_and_types_are_refused(service: Running, shown: list[str]) -> None:
    token = token_of(shown[0])
    body = json.dumps({"token": token}).encode()
    for method in ("GET", "HEAD", "PUT", "DELETE"):
        async with connected(service.http_address) as wire:
            wire.send(wire.head(SESSION, method=method))
            assert (await wire.response_head())[0] == 405
    for kind in ("text/plain", "application/x-www-form-urlencoded", "", "application/jsonp"):
        response = await send(service, SESSION, [("content-type", kind)], body, method="POST")
        assert (response.status, reason(response)) == (415, "UNSUPPORTED_HTTP_REQUEST")
    kind = "Application/JSON; charset=utf-8"
    response = await send(service, SESSION, [("content-type", kind)], body, method="POST")
    credential_of(response)


async def test_pages_of_other_origins_have_no_use_of_a_token(
    service: Running, shown: list[str]
) -> None:
    token, session = token_of(shown[0]), await session_of(service)
    for headers, host in (
        ([], "evil.test"),
        ([("origin", "http://evil.test")], "evil.test"),
        ([("origin", "https://evil.test")], None),
        ([("sec-fetch-site", "cross-site")], None),
    ):
        for response in (
            await exchange(service, token, *headers, host=host),
            await send(service, LIST, [JSON, session, *headers], b"{}", method="POST", host=host),
        ):
            assert (response.status, reason(response)) in {
                (403, "HOST_NOT_ALLOWED"),
                (403, "ORIGIN_NOT_ALLOWED"),
            }
            assert "access-control-allow-origin" not in response.headers


async def test_a_request_that_does_not_arrive_ends(
    service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "_RECEIVE_TIMEOUT_S", 0.1)
    async with connected(service.http_address) as wire:
        wire.send(wire.head(SESSION, [JSON, ("content-length", "20")]) + b"{")
        response = await wire.response()

    assert (response.status, reason(response)) == (504, "DEADLINE_EXCEEDED")


async def test_with_keys_there_are_no_sessions(folder: Path, key_file: KeyFile) -> None:
    key = key_file.add("acme", "embed")
    async with page_service(folder, auth={"api_keys_file": key_file.path}) as service:
        shown: list[str] = []
        service.show_page(shown.append)
        response = await exchange(service, "x")
        without = await listed(service)
        with_key = await listed(service, *bearer(key))

    assert shown == [f"Web page: {service.http_address}/"]
    assert (response.status, reason(response)) == (404, "UNSUPPORTED_HTTP_REQUEST")
    assert (without.status, reason(without)) == (401, "UNAUTHENTICATED")
    assert with_key.status == 200


async def test_with_client_certificates_there_are_no_sessions(
    folder: Path, tmp_path: Path, authority: trustme.CA, server_pem: Pem
) -> None:
    client = authority.issue_cert("browser.test")
    channel_credentials(authority, client)
    tls = server_pem.settings(client_ca_file=ca_file(tmp_path, authority))
    async with page_service(folder, tls=tls) as service:
        caller = HttpCaller(service.http_address, "connect", client_tls(authority, client))
        assert (await caller.call("ListModels", LIST_MODELS)).models


async def test_over_tls_the_address_says_so(
    folder: Path, authority: trustme.CA, server_pem: Pem
) -> None:
    async with page_service(folder, tls=server_pem.settings()) as service:
        lines: list[str] = []
        service.show_page(lines.append)
        assert lines[0].startswith("Web page: https://127.0.0.1:")
        body = json.dumps({"token": token_of(lines[0])}).encode()
        async with connected(service.http_address, client_tls(authority)) as wire:
            session = credential_of(await wire.request(SESSION, body, [JSON]))
        caller = HttpCaller(service.http_address, "grpc_web", client_tls(authority))
        assert (await caller.call("ListModels", LIST_MODELS, bearer(session))).models


async def test_behind_a_proxy_its_name_and_origin_must_be_listed(folder: Path) -> None:
    http = {"allowed_hosts": "sam.test", "allowed_origins": "https://sam.test"}
    async with page_service(folder, http=http) as service:
        lines: list[str] = []
        service.show_page(lines.append)
        # As the page at https://sam.test/samserve/ sends it; the proxy removes the prefix.
        origin = [("origin", "https://sam.test"), ("sec-fetch-site", "same-origin")]
        response = await exchange(service, token_of(lines[0]), *origin, host="sam.test")
        header = ("authorization", f"Bearer {credential_of(response)}")
        call = await send(
            service, LIST, [JSON, header, *origin], b"{}", method="POST", host="sam.test"
        )
        assert (call.status, (await send(service, "/", host="sam.test")).status) == (200, 200)


def test_tokens_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    same = hmac.compare_digest

    def record(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return same(one, other)

    monkeypatch.setattr(sessions.hmac, "compare_digest", record)
    opened = Sessions()
    token = secret(opened.issue())
    with pytest.raises(SessionTokenInvalid):
        opened.exchange("wrong")
    secret(opened.exchange(token))

    # Digests, so that not even the length of a guess matters.
    assert [(len(one), len(other)) for one, other in compared] == [(32, 32)] * 2


def test_no_secret_is_kept() -> None:
    opened = Sessions()
    shown: list[str] = []
    opened.announce = shown.append
    secrets = [secret(opened.exchange(secret(opened.issue()))), secret(shown[0])]

    assert not any(each in repr(vars(opened)) for each in secrets)


def test_a_policy_that_requires_credentials_later_outranks_sessions() -> None:
    authenticator = Authenticator()
    over_http = SessionAuthenticator(authenticator, Sessions())
    with pytest.raises(SessionRequired):
        over_http.authenticate([])

    # As the identities of a reloaded policy set it.
    authenticator._required = True
    with pytest.raises(Exception, match="credentials are required"):
        over_http.authenticate([])


@pytest.mark.parametrize("host", ["::", "0.0.0.0", "192.0.2.1", "sam.test"])
def test_outside_of_loopback_the_page_needs_credentials(host: str, tmp_path: Path) -> None:
    def settings(**sections: dict[str, Any]) -> None:
        http = {"enabled": True, "web_page": True, "host": host}
        load({"http": http, "server": {"allow_plaintext": True}, **sections})

    with pytest.raises(ValueError, match=r"http\.web_page: http\.host .* is not loopback: set"):
        settings()
    settings(auth={"api_keys_file": tmp_path})
    settings(auth={"jwks_file": tmp_path, "jwt_issuer": "x", "jwt_audience": "y"})
    pair = {"cert_file": tmp_path, "key_file": tmp_path}
    settings(tls={**pair, "client_ca_file": tmp_path})
    with pytest.raises(ValueError, match="is not loopback"):
        settings(tls=pair)


def test_the_page_needs_the_listener(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="web_page requires enabled"):
        load({"http": {"web_page": True}})
    with pytest.raises(ValueError, match="web_page_folder requires web_page"):
        load({"http": {"web_page_folder": tmp_path}})
