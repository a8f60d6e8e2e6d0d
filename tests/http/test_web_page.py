"""The files of the web page: what is served, to whom, and what browsers may do with it."""

from __future__ import annotations

import asyncio
import gzip
import os
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
import structlog
from samserve.app import Running
from samserve.errors import Misconfigured
from samserve.http.response import HttpResponse
from samserve.http.server.connection import Connection
from samserve.http.web import endpoints, files
from samserve.http.web.files import read_page
from samserve.settings import LogSettings
from samserve.telemetry import logs

from tests.http.serving import http_service
from tests.http.web_pages import (
    FILES,
    LIST,
    SESSION,
    page_service,
    reason,
    send,
    session_of,
    write_page,
)
from tests.http.wire import JSON, Response, connected
from tests.metric_values import total
from tests.security.credentials import KeyFile, bearer
from tests.support.waiting import TIMEOUT_S, until

MAIN, WASM = "/assets/main-1a2b.js", "/assets/run-7a8b.wasm"
TYPES = {
    "index.html": "text/html; charset=utf-8",
    "favicon.svg": "image/svg+xml",
    "robots.txt": "text/plain; charset=utf-8",
    "data": "application/octet-stream",
    "assets/main-1a2b.js": "text/javascript; charset=utf-8",
    "assets/worker-3c4d.mjs": "text/javascript; charset=utf-8",
    "assets/main-1a2b.js.map": "application/json",
    "assets/main-5e6f.css": "text/css; charset=utf-8",
    "assets/run-7a8b.wasm": "application/wasm",
    "samples/coins.jpg": "image/jpeg",
    "samples/coins.PNG": "image/png",
    "samples/list.json": "application/json",
}
POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; "
    "connect-src 'self'; img-src 'self' blob:; style-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
ISOLATED = {
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-embedder-policy": "require-corp",
    "cross-origin-resource-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    async with page_service(write_page(tmp_path_factory.mktemp("page"))) as running:
        yield running


module_loop = pytest.mark.asyncio(loop_scope="module")


def check_isolated(response: Response) -> None:
    assert ISOLATED.items() <= response.headers.items()


@module_loop
@pytest.mark.parametrize("name", FILES)
async def test_files_are_served_with_their_types(service: Running, name: str) -> None:
    response = await send(service, f"/{name}")

    assert (response.status, response.body) == (200, FILES[name])
    assert response.headers["content-type"] == TYPES[name]
    check_isolated(response)


@module_loop
async def test_the_index_is_the_page(service: Running) -> None:
    for path in ("/", "/index.html", "/?a=b", "/?"):
        response = await send(service, path)
        assert (response.status, response.body) == (200, FILES["index.html"]), path
        check_isolated(response)


@module_loop
async def test_only_names_with_a_digest_are_cached_unchecked(service: Running) -> None:
    for name in FILES:
        caching = (await send(service, f"/{name}")).headers["cache-control"]
        fixed = "public, max-age=31536000, immutable"
        assert caching == (fixed if name.startswith("assets/") else "no-cache")


@module_loop
async def test_head_has_the_headers_of_the_file(service: Running) -> None:
    async with connected(service.http_address) as wire:
        for name in ("index.html", WASM[1:]):
            got = await wire.request(f"/{name}", method="GET")
            wire.send(wire.head(f"/{name}", method="HEAD"))
            async with asyncio.timeout(TIMEOUT_S):
                status, headers = await wire.response_head()
            assert (status, headers["content-length"]) == (200, str(len(FILES[name])))
            assert headers.items() - {("date", headers["date"])} <= got.headers.items()


@module_loop
async def test_a_known_file_is_not_sent_again(service: Running) -> None:
    first = await send(service, MAIN)
    tag, other = first.headers["etag"], (await send(service, "/")).headers["etag"]
    assert tag != other
    for known in (tag, f"W/{tag}", f'"x", {tag}', f"{other},{tag}", "*"):
        response = await send(service, MAIN, [("if-none-match", known)])
        assert (response.status, response.body) == (304, b""), known
        assert response.headers["etag"] == tag
        check_isolated(response)
    for unknown in ("", other, tag.strip('"'), '"*"'):
        response = await send(service, MAIN, [("if-none-match", unknown)])
        assert (response.status, response.body) == (200, FILES[MAIN[1:]]), unknown


@module_loop
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
async def test_files_are_only_read(service: Running, method: str) -> None:
    response = await send(service, MAIN, method=method)

    assert (response.status, response.headers["allow"]) == (405, "GET, HEAD")
    assert reason(response) == "UNSUPPORTED_HTTP_REQUEST"


@module_loop
@pytest.mark.parametrize(
    "path",
    [
        *("/../index.html", "/..", "/../../etc/passwd", "/assets/../../secret.txt", "//index.html"),
        *("/%2e%2e/secret.txt", "/..%2fsecret.txt", "/%2e%2e%2fsecret.txt", "/..%5csecret.txt"),
        *("/assets%2f..%2fsecret.txt", "/index.html%00", "/index.html%00.txt", "/%00", "/%ff"),
        *("/assets", "/assets/", "/assets/.", "/index.html/", "/INDEX.HTML", "/assets/main.js"),
        *("/.hidden", "/.git/config", "/link.txt", "/folder/secret.txt", "/pipe", "/%252e%252e/x"),
        "/" + "a" * 5000,
    ],
)
async def test_nothing_else_is_served(service: Running, path: str) -> None:
    response = await send(service, path)

    assert (response.status, reason(response)) == (404, "UNSUPPORTED_HTTP_REQUEST")


def test_only_files_of_the_folder_are_read(tmp_path: Path) -> None:
    folder = write_page(tmp_path / "page")
    (tmp_path / "secret.txt").write_text("a secret")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "folder").symlink_to(tmp_path, target_is_directory=True)
    (folder / "broken").symlink_to(tmp_path / "none")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / ".hidden").write_text("hidden")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("hidden")
    os.mkfifo(folder / "pipe")
    # A link to another file of the page is one of its files.
    (folder / "inside.txt").symlink_to(folder / "robots.txt")

    names = {path[1:] for path in read_page(folder, compress=False)}

    assert names == {"", "inside.txt", *FILES}


def test_an_installed_page_may_consist_of_links(tmp_path: Path) -> None:
    """As some installers make them, to files in their cache."""
    cached, installed = write_page(tmp_path / "cache"), tmp_path / "installed"
    for name in FILES:
        (installed / name).parent.mkdir(parents=True, exist_ok=True)
        (installed / name).symlink_to(cached / name)

    found = read_page(installed, compress=False)

    assert {path: file.content for path, file in found.items()} == {
        "/": FILES["index.html"],
        **{f"/{name}": content for name, content in FILES.items()},
    }


@pytest.mark.parametrize("case", ["missing", "empty", "a file", "index is a folder"])
async def test_a_folder_without_a_page_is_an_error(tmp_path: Path, case: str) -> None:
    folder = tmp_path / "page"
    if case == "a file":
        folder.write_text("")
    elif case != "missing":
        folder.mkdir()
    if case == "index is a folder":
        (folder / "index.html").mkdir()
    with pytest.raises(Misconfigured, match=r"http\.web_page_folder: .*page"):
        async with page_service(folder):
            pass


def test_a_folder_with_too_much_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_page(tmp_path)
    for name, value in (("_MAX_FILES", len(FILES) - 1), ("_MAX_BYTES", 1 << 20)):
        with monkeypatch.context() as patch:
            patch.setattr(files, name, value)
            with pytest.raises(Misconfigured, match="is not the folder of a page"):
                read_page(folder, compress=False)


async def test_an_installation_without_the_page_states_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "default_folder", lambda: tmp_path)
    with structlog.testing.capture_logs() as lines:
        async with http_service(http={"web_page": True}) as service:
            response = await send(service, "/")
            missing = await send(service, MAIN)
            call = await send(
                service, LIST, [JSON, await session_of(service)], b"{}", method="POST"
            )

    assert (response.status, missing.status, call.status) == (404, 404, 200)
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["cache-control"] == "no-store"
    check_isolated(response)
    assert b"make web" in response.body
    assert b"<script" not in response.body
    assert "the web page is not part of this package" in {line["event"] for line in lines}


def test_the_page_of_the_package_comes_before_that_of_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "service" / "samserve" / "http" / "web" / "files.py"
    monkeypatch.setattr(files, "__file__", str(module))
    assert files.default_folder() == tmp_path / "web" / "dist"

    (tmp_path / "service" / "samserve" / "web_page").mkdir(parents=True)
    assert files.default_folder() == tmp_path / "service" / "samserve" / "web_page"


async def test_nothing_is_served_unless_it_is_enabled() -> None:
    async with http_service() as service:
        assert service.page is None
        for path, method in (("/", "GET"), (MAIN, "GET"), (SESSION, "POST")):
            assert (await send(service, path, method=method)).status == 404


async def test_the_api_keeps_its_own_headers(service_with_decoder: Running) -> None:
    service = service_with_decoder
    session = await session_of(service)
    listed = await send(service, LIST, [JSON, session], b"{}", method="POST")
    refused = await send(service, LIST, [JSON], b"{}", method="POST")
    missing = await send(service, "/nothing")
    decoder = await send(service, f"/decoders/{'0' * 64}", [session])

    for response in (listed, refused, missing, decoder):
        policy = response.headers["content-security-policy"]
        assert policy == "default-src 'none'; frame-ancestors 'none'"
        assert response.headers["cross-origin-resource-policy"] == "same-origin"
        assert not {name for name in response.headers if "opener" in name or "embedder" in name}


@pytest.fixture
async def service_with_decoder(tmp_path: Path) -> AsyncIterator[Running]:
    async with page_service(write_page(tmp_path)) as running:
        yield running


@module_loop
async def test_pages_of_other_names_and_origins_get_no_file(service: Running) -> None:
    own = urlsplit(service.http_address).netloc
    for path in ("/", "/index.html", MAIN, WASM):
        rebound = await send(service, path, host="evil.test")
        assert (rebound.status, reason(rebound)) == (403, "HOST_NOT_ALLOWED")
        for headers in (
            [("origin", "https://evil.test")],
            [("origin", "null")],
            [("sec-fetch-site", "cross-site")],
            [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")],
            [("sec-fetch-site", "same-site"), ("sec-fetch-dest", "script")],
        ):
            response = await send(service, path, headers)
            assert (response.status, reason(response)) == (403, "ORIGIN_NOT_ALLOWED"), headers
        same = [("origin", f"http://{own}"), ("sec-fetch-site", "same-origin")]
        assert (await send(service, path, same)).status == 200


LINK = [
    ("sec-fetch-site", "cross-site"),
    ("sec-fetch-mode", "navigate"),
    ("sec-fetch-dest", "document"),
]


@module_loop
async def test_a_link_on_any_page_may_lead_to_the_page(service: Running) -> None:
    """The page of the link cannot read it, or open it in a frame."""
    for path in ("/", "/index.html"):
        assert (await send(service, path, LINK)).status == 200
        assert (await send(service, path, LINK, host="evil.test")).status == 403
        framed = [*LINK[:2], ("sec-fetch-dest", "iframe")]
        assert (await send(service, path, framed)).status == 403
        assert (await send(service, path, [*LINK, ("origin", "null")])).status == 403
        assert (await send(service, path, LINK, method="POST")).status == 403
    for path in (MAIN, "/favicon.svg", LIST, SESSION, f"/decoders/{'0' * 64}"):
        assert (await send(service, path, LINK)).status == 403


async def test_files_are_public_and_calls_are_not(tmp_path: Path, key_file: KeyFile) -> None:
    key = key_file.add("acme", "embed")
    folder, auth = write_page(tmp_path / "page"), {"api_keys_file": key_file.path}
    async with page_service(folder, auth=auth) as service:
        assert (await send(service, "/")).status == 200
        for headers, status in (([], 401), (bearer(key), 200)):
            response = await send(service, LIST, [JSON, *headers], b"{}", method="POST")
            assert response.status == status


async def test_files_are_compressed_for_other_machines(tmp_path: Path, key_file: KeyFile) -> None:
    key_file.add("acme", "embed")
    remote: dict[str, Any] = {
        "http": {"host": "0.0.0.0"},
        "server": {"allow_plaintext": True},
        "auth": {"api_keys_file": key_file.path},
    }
    async with page_service(write_page(tmp_path / "page"), **remote) as service:
        address = service.http_address.replace("0.0.0.0", "127.0.0.1")

        async def get(path: str, *accepted: str, known: str = "") -> Response:
            headers = [("accept-encoding", each) for each in accepted]
            headers += [("if-none-match", known)] if known else []
            async with connected(address) as wire:
                return await wire.request(path, b"", headers, method="GET")

        plain = await get(MAIN)
        for accepted in ("gzip", "deflate, gzip", "br;q=1.0, GZIP;q=0.5, *;q=0", "gzip;q=1"):
            response = await get(MAIN, accepted)
            assert response.headers["content-encoding"] == "gzip", accepted
            assert gzip.decompress(response.body) == plain.body == FILES[MAIN[1:]]
            assert response.headers["vary"] == plain.headers["vary"] == "accept-encoding"
            tag = response.headers["etag"]
            assert tag != plain.headers["etag"]
            assert (await get(MAIN, accepted, known=tag)).status == 304
            assert (await get(MAIN, known=tag)).status == 200
        for accepted in ("identity", "gzip;q=0", "br, gzip; q=0.0", "xgzip", ""):
            assert "content-encoding" not in (await get(MAIN, accepted)).headers, accepted
        # Not what is small, or compressed already.
        for path in ("/", "/samples/coins.jpg"):
            assert "content-encoding" not in (await get(path, "gzip")).headers


@module_loop
async def test_on_loopback_files_are_sent_as_they_are(service: Running) -> None:
    response = await send(service, MAIN, [("accept-encoding", "gzip")])

    assert "content-encoding" not in response.headers
    assert response.body == FILES[MAIN[1:]]


async def test_slow_readers_hold_little_memory_and_are_disconnected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_page(tmp_path)
    large = bytes(16 << 20)
    (folder / "assets" / "large.wasm").write_bytes(large)
    waiting: set[Connection] = set()
    pause_writing = Connection.pause_writing

    def record(connection: Connection) -> None:
        pause_writing(connection)
        waiting.add(connection)

    monkeypatch.setattr(Connection, "pause_writing", record)
    async with page_service(folder, server={"send_timeout_s": 0.1}) as service:
        registry = service.metrics.registry
        async with AsyncExitStack() as stack:
            for _ in range(8):
                wire = await stack.enter_async_context(connected(service.http_address))
                opened = wire.writer.get_extra_info("socket")
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
                wire.writer.transport.pause_reading()
                wire.send(wire.head("/assets/large.wasm", method="GET"))
            await until(lambda: len(waiting) == 8)
            held = [each._transport.get_write_buffer_size() for each in waiting]
            # Others are served meanwhile.
            assert (await send(service, "/assets/large.wasm")).body == large
            await until(lambda: total(registry, "samserve_http_connections") == 0)

    assert max(held) <= 2 * (64 << 10) + 2048


async def test_other_work_continues_during_a_transfer() -> None:
    """Also if the client accepts everything at once, so that no part has to wait."""
    turns, parts = 0, 20

    async def work() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async def accept(_: dict[str, Any]) -> None:
        pass

    other = asyncio.create_task(work())
    await endpoints._send(HttpResponse(accept), bytes(parts * (64 << 10)))
    other.cancel()

    assert turns >= parts - 1


async def test_a_transfer_without_end_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "_DEADLINE_S", 0.1)
    folder = write_page(tmp_path)
    (folder / "large.bin").write_bytes(bytes(16 << 20))
    async with page_service(folder) as service, connected(service.http_address) as wire:
        opened = wire.writer.get_extra_info("socket")
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        wire.writer.transport.pause_reading()
        wire.send(wire.head("/large.bin", method="GET"))
        registry = service.metrics.registry
        await until(lambda: total(registry, "samserve_http_connections") == 1)
        await until(lambda: total(registry, "samserve_http_connections") == 0)


async def test_requests_for_files_are_one_line_of_the_debug_log(tmp_path: Path) -> None:
    logs.configure(LogSettings(level="debug"))
    with structlog.testing.capture_logs() as lines:
        async with page_service(write_page(tmp_path)) as service:
            await send(service, MAIN + "?token=of-a-query")
            await send(service, "/")

    found = [line for line in lines if line["event"] == "page file"]
    assert [(line["log_level"], line["path"]) for line in found] == [
        ("debug", MAIN),
        ("debug", "/"),
    ]
    assert "of-a-query" not in repr(lines)
