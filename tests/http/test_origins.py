"""Requests of web pages: Host, Origin, Sec-Fetch-Site, preflights, and content types of forms."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from samserve.app import Running

from tests.http.serving import http_service
from tests.http.wire import JSON, SERVICE, Response, connected
from tests.metric_values import total
from tests.support.waiting import TIMEOUT_S

pytestmark = pytest.mark.asyncio(loop_scope="module")

APP = "https://app.example.com"
LIST = SERVICE + "ListModels"
WEB = ("content-type", "application/grpc-web+proto")
PROTO = ("content-type", "application/proto")
EMPTY_ENVELOPE = bytes(5)
BODIES = {JSON: b"{}", WEB: EMPTY_ENVELOPE, PROTO: b""}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service() -> AsyncIterator[Running]:
    http = {"allowed_origins": f"{APP}, http://localhost:3000", "allowed_hosts": "Sam.test, b:81"}
    async with http_service(http=http) as running:
        yield running


async def listed(
    service: Running, *headers: tuple[str, str], host: str | None = None, kind: Any = JSON
) -> Response:
    async with connected(service.http_address) as wire:
        return await wire.request(LIST, BODIES[kind], [kind, *headers], host=host)


def reason(response: Response) -> str:
    infos = [
        each["debug"]
        for each in json.loads(response.body)["details"]
        if each["type"] == "google.rpc.ErrorInfo"
    ]
    assert infos[0]["metadata"]["request_id"] == response.headers["x-request-id"]
    return str(infos[0]["reason"])


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:1", "127.0.0.1:1", "127.1.2.3", "[::1]:8080", "sam.test:9", "b:81"],
)
async def test_own_and_allowed_hosts_are_accepted(service: Running, host: str) -> None:
    assert (await listed(service, host=host)).status == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.test", "localhost.evil.test", "127.0.0.1.evil.test", "evil.test:8080", "10.0.0.1"),
        *("b:82", "b", "localhost@evil.test", "sam.test.", "[::2]", "[", "a b", "1"),
        *("evil.test@localhost", "evil.test:80@localhost", "localhost/evil", "localhost?evil"),
        *("localhost#evil", "[::1].evil.test", "[::1]x", "[::1%eth0]", "localhost:x"),
    ],
)
@pytest.mark.parametrize("kind", BODIES, ids=["json", "grpc_web", "connect"])
async def test_other_hosts_are_refused(service: Running, host: str, kind: Any) -> None:
    """Such as a name that an attacker lets resolve to 127.0.0.1, for which his page is its own."""
    response = await listed(service, ("origin", f"http://{host}"), host=host, kind=kind)

    assert (response.status, reason(response)) == (403, "HOST_NOT_ALLOWED")


async def test_a_request_needs_one_host(service: Running) -> None:
    for response in (
        await listed(service, host=""),
        await listed(service, ("host", "localhost"), host="localhost"),
    ):
        assert response.status == 400


async def test_every_host_can_be_allowed() -> None:
    async with http_service(http={"allowed_hosts": "*"}) as service:
        assert (await listed(service, host="any.test")).status == 200
        # Which lets no page of another origin in.
        assert (await listed(service, ("origin", APP), host="any.test")).status == 403


async def test_pages_of_the_listener_and_other_programs_may_call(service: Running) -> None:
    own = urlsplit(service.http_address).netloc
    for headers in (
        [],
        [("origin", f"http://{own}")],
        [("origin", f"http://{own}"), ("sec-fetch-site", "same-origin")],
        [("sec-fetch-site", "none")],
    ):
        assert (await listed(service, *headers)).status == 200, headers


@pytest.mark.parametrize(
    "headers",
    [
        [("origin", "https://evil.test")],
        [("origin", "null")],
        [("origin", "http://localhost")],
        [("origin", "https://app.example.com.evil.test")],
        [("origin", "http://app.example.com")],
        [("origin", "https://app.example.com:444")],
        [("sec-fetch-site", "cross-site")],
        [("sec-fetch-site", "same-site")],
        [("sec-fetch-site", "anything")],
        [("origin", "https://evil.test"), ("sec-fetch-site", "same-origin")],
    ],
    ids=lambda headers: " ".join(value for _, value in headers),
)
@pytest.mark.parametrize("kind", BODIES, ids=["json", "grpc_web", "connect"])
async def test_pages_of_other_origins_are_refused(
    service: Running, headers: list[tuple[str, str]], kind: Any
) -> None:
    before = counts(service)
    response = await listed(service, *headers, kind=kind)

    assert (response.status, reason(response)) == (403, "ORIGIN_NOT_ALLOWED")
    assert "access-control-allow-origin" not in response.headers
    # No call began.
    assert counts(service) == (before[0] + 1, before[1])


def counts(service: Running) -> tuple[float, float]:
    """Return the number of refused requests, and of calls."""
    registry = service.metrics.registry
    refused = total(registry, "samserve_http_refused_total", reason="ORIGIN_NOT_ALLOWED")
    return refused, total(registry, "grpc_server_started_total")


async def test_the_scheme_is_part_of_the_own_origin(service: Running) -> None:
    own = urlsplit(service.http_address).netloc

    assert (await listed(service, ("origin", f"https://{own}"))).status == 403


@pytest.mark.parametrize("kind", BODIES, ids=["json", "grpc_web", "connect"])
async def test_pages_of_allowed_origins_can_read_responses(service: Running, kind: Any) -> None:
    headers = ("origin", APP), ("sec-fetch-site", "cross-site")
    response = await listed(service, *headers, kind=kind)

    assert response.status == 200
    assert response.headers["access-control-allow-origin"] == APP
    assert response.headers["vary"] == "origin"
    assert "x-request-id" in response.headers["access-control-expose-headers"]
    assert "access-control-allow-credentials" not in response.headers


async def preflight(service: Running, origin: str) -> Response:
    headers = [
        ("origin", origin),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "authorization,content-type"),
        ("sec-fetch-site", "cross-site"),
    ]
    async with connected(service.http_address) as wire:
        return await wire.request(LIST, b"", headers, method="OPTIONS")


async def test_preflights_of_allowed_origins_are_answered(service: Running) -> None:
    response = await preflight(service, APP)

    assert (response.status, response.body) == (204, b"")
    assert response.headers["access-control-allow-origin"] == APP
    allowed = response.headers["access-control-allow-headers"]
    assert {"authorization", "content-type", "connect-timeout-ms"} <= set(allowed.split(", "))
    assert "POST" in response.headers["access-control-allow-methods"]
    assert "*" not in "".join(response.headers.values())


async def test_preflights_of_other_origins_are_refused(service: Running) -> None:
    response = await preflight(service, "https://evil.test")

    assert response.status == 403
    assert not [name for name in response.headers if name.startswith("access-control")]


async def test_no_page_is_allowed_by_default() -> None:
    async with http_service() as service:
        assert (await preflight(service, APP)).status == 403
        assert (await listed(service, ("origin", APP))).status == 403
        assert "vary" not in (await listed(service)).headers


@pytest.mark.parametrize(
    "kind",
    [
        *("", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"),
        *("application/jsonp", "text/plain; application/json", "application/grpc", "*/*"),
        *("application/connect+json", "application/octet-stream", "application/json, text/plain"),
    ],
)
async def test_content_types_of_forms_and_unknown_ones_are_refused(
    service: Running, kind: str
) -> None:
    headers = [("content-type", kind)] if kind else []
    async with connected(service.http_address) as wire:
        response = await wire.request(LIST, b"{}", headers)

    assert (response.status, reason_of_http(response)) == (415, "UNSUPPORTED_HTTP_REQUEST")
    assert "application/json" in response.headers["accept-post"]


def reason_of_http(response: Response) -> str:
    return str(json.loads(response.body)["details"][0]["debug"]["reason"])


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
async def test_methods_are_called_with_post_only(service: Running, method: str) -> None:
    async with connected(service.http_address) as wire:
        wire.send(wire.head(LIST + "?message={}&encoding=json", method=method))
        async with asyncio.timeout(TIMEOUT_S):
            status, headers = await wire.response_head()

    assert (status, headers["allow"]) == (405, "POST")


@pytest.mark.parametrize(
    "path", ["/", "/x", LIST + "/", LIST + "x", "//", "/decoders", "/samserve.v1.Other/ListModels"]
)
async def test_other_paths_are_not_found(service: Running, path: str) -> None:
    async with connected(service.http_address) as wire:
        response = await wire.request(path, b"{}", [JSON])

    assert (response.status, reason_of_http(response)) == (404, "UNSUPPORTED_HTTP_REQUEST")


async def test_every_response_has_security_headers(service: Running) -> None:
    for response in (
        await listed(service),
        await listed(service, host="evil.test"),
        await preflight(service, APP),
    ):
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in response.headers["content-security-policy"]
        assert response.headers["cross-origin-resource-policy"] == "same-origin"
        assert "server" not in response.headers
