"""Connections and responses of servers that fail, are slow, or are hostile."""

from __future__ import annotations

import asyncio
import gzip
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trustme
from samserve.bridge.fetching import (
    DownloadFailed,
    DownloadNotImage,
    DownloadRefused,
    DownloadTimeout,
    DownloadTooLarge,
    Fetcher,
    FetchSettings,
    UrlNotAllowed,
)
from samserve.errors import Misconfigured

from tests.bridge.fetching.sites import IMAGE, Names, Request, redirect, reply, site
from tests.support.waiting import TIMEOUT_S

LOOPBACK = {"allowed_networks": "127.0.0.0/8", "allowed_ports": "*"}


def fetcher_of(names: Names | None = None, **rules: Any) -> Fetcher:
    names = names or Names(images_example=[["127.0.0.1"]])
    return Fetcher(FetchSettings(**{**LOOPBACK, **rules}), resolve=names)


async def test_connection_goes_to_the_address_that_was_checked() -> None:
    """The second answer of DNS is internal: it is never asked for."""
    names = Names(images_example=[["127.0.0.1"], ["127.0.0.2"]])
    async with site(reply()) as public, site(reply(b"internal")) as other:
        fetcher = fetcher_of(names, allowed_networks="127.0.0.1/32")
        fetched = await fetcher.fetch(f"http://images.example:{public.port}/")

    assert (fetched.body, names.queries) == (IMAGE, ["images.example"])
    assert (public.connections, other.connections) == (1, 0)


async def test_name_that_becomes_internal_is_refused_at_the_redirect() -> None:
    names = Names(images_example=[["127.0.0.1"], ["127.0.0.2"]])
    async with site({"/": redirect("/again")}) as public:
        with pytest.raises(UrlNotAllowed, match="not public"):
            await fetcher_of(names, allowed_networks="127.0.0.1/32").fetch(
                f"http://images.example:{public.port}/"
            )

    assert (names.queries, public.connections) == (["images.example"] * 2, 1)


async def test_only_the_allowed_addresses_of_a_name_are_tried() -> None:
    names = Names(images_example=[["127.0.0.2", "::1", "127.0.0.3", "127.0.0.1", "127.0.0.4"]])
    async with site(reply()) as public:
        fetcher = fetcher_of(names, allowed_networks="127.0.0.1/32,127.0.0.3/32,127.0.0.4/32")

        assert (await fetcher.fetch(f"http://images.example:{public.port}/")).body == IMAGE


async def test_unknown_name_and_closed_port_are_failures() -> None:
    async with site(reply()) as closed:
        pass
    for host in ("images.example", "unknown.example"):
        with pytest.raises(DownloadFailed, match=f"{host}: .*(resolved|connected)"):
            await fetcher_of().fetch(f"http://{host}:{closed.port}/path?secret")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *(("404 Not Found", DownloadRefused), ("401 Unauthorized", DownloadRefused)),
        *(("204 No Content", DownloadRefused), ("206 Partial Content", DownloadRefused)),
        *(("304 Not Modified", DownloadRefused), ("429 Too Many Requests", DownloadFailed)),
        *(("500 Internal Server Error", DownloadFailed), ("503 Unavailable", DownloadFailed)),
    ],
)
async def test_other_statuses_are_errors(status: str, kind: type[Exception]) -> None:
    body = b"" if status[:3] in ("204", "304") else IMAGE
    async with site(reply(body, status)) as images:
        with pytest.raises(
            kind, match=f"images.example: answered with status {status[:3]}"
        ) as caught:
            await fetcher_of().fetch(f"http://images.example:{images.port}/path?signature=secret")

    assert "secret" not in str(caught.value)
    assert "path" not in str(caught.value)


async def test_redirect_without_an_address_is_a_failure() -> None:
    async with site(reply(b"", "302 Found")) as images:
        with pytest.raises(DownloadFailed, match="without an address"):
            await fetcher_of().fetch(f"http://images.example:{images.port}/")


async def test_announced_size_is_refused_before_the_body() -> None:
    async with site(reply(b"", length=1001)) as images:
        with pytest.raises(DownloadTooLarge, match=r"1000 bytes \(fetch.max_bytes\)"):
            await fetcher_of(max_bytes=1000).fetch(f"http://images.example:{images.port}/")


@pytest.mark.parametrize("chunked", [True, False])
async def test_endless_body_ends_at_the_maximum_size(chunked: bool) -> None:
    written = 0

    async def answer(_: Request, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        coding = "Transfer-Encoding: chunked\r\n" if chunked else ""
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n{coding}\r\n".encode())
        while True:
            writer.write(b"1000\r\n" + bytes(4096) + b"\r\n" if chunked else bytes(4096))
            written += 4096
            await writer.drain()

    async with site(answer) as images:
        with pytest.raises(DownloadTooLarge):
            await fetcher_of(max_bytes=100_000).fetch(f"http://images.example:{images.port}/")

    # What the sockets hold was written as well.
    assert written < 50 << 20


async def test_body_of_the_maximum_size_is_fetched() -> None:
    async with site(reply(bytes(100_000))) as images:
        fetched = await fetcher_of(max_bytes=100_000).fetch(f"http://images.example:{images.port}/")

    assert len(fetched.body) == 100_000


async def test_tiny_pieces_are_refused() -> None:
    """Each piece costs time and memory of its own, whatever its size is."""
    answer = reply(b"1\r\nx\r\n" * 5000, length=0, Transfer_Encoding="chunked")
    async with site(answer.replace(b"Content-Length: 0\r\n", b"")) as images:
        with pytest.raises(DownloadFailed, match="too small"):
            await fetcher_of().fetch(f"http://images.example:{images.port}/")


async def test_compressed_response_is_refused_before_its_body() -> None:
    bomb = gzip.compress(bytes(10 << 20))
    async with site(reply(bomb, content_encoding="gzip")) as images:
        with pytest.raises(DownloadNotImage, match="compressed"):
            await fetcher_of().fetch(f"http://images.example:{images.port}/")

    assert images.requests[0].headers["accept-encoding"] == "identity"


async def test_body_that_ends_early_is_a_failure() -> None:
    async with site(reply(length=len(IMAGE) + 1)) as images:
        with pytest.raises(DownloadFailed, match="not valid HTTP"):
            await fetcher_of().fetch(f"http://images.example:{images.port}/")


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: " + b"a" * 300_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 100_000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=["empty", "ssh", "length", "header", "headers", "chunks"],
)
async def test_response_that_is_not_http_is_a_failure(answer: bytes) -> None:
    async with site(answer) as images:
        with pytest.raises(DownloadFailed, match=r"not valid HTTP|connection was lost"):
            await fetcher_of().fetch(f"http://images.example:{images.port}/")


async def _never(_: Request, writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def _headers_then_nothing(_: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(reply(b"", length=1000))
    await asyncio.Event().wait()


async def _slow_headers(_: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X: y\r\n")
        await writer.drain()
        await asyncio.sleep(0.01)


async def _slow_body(_: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(reply(b"", length=10_000_000))
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.01)


async def _endless_information(_: Request, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("answer", [_never, _headers_then_nothing])
async def test_silent_server_is_left_after_the_idle_timeout(answer: Any) -> None:
    async with site(answer) as images:
        with pytest.raises(DownloadTimeout, match=r"fetch.idle_timeout_s"):
            await fetcher_of(idle_timeout_s=0.1).fetch(f"http://images.example:{images.port}/")


@pytest.mark.parametrize("answer", [_slow_headers, _slow_body, _endless_information])
async def test_slow_server_is_left_after_the_total_time(answer: Any) -> None:
    async with site(answer) as images:
        with pytest.raises(DownloadTimeout, match=r"fetch.timeout_s"):
            await fetcher_of(timeout_s=0.2).fetch(f"http://images.example:{images.port}/")


async def test_total_time_includes_the_resolver() -> None:
    async def never(host: str, port: int) -> list[str]:
        await asyncio.Event().wait()
        return []

    fetcher = Fetcher(FetchSettings(timeout_s=0.1), resolve=never)
    with pytest.raises(DownloadTimeout, match=r"fetch.timeout_s"):
        await fetcher.fetch("http://images.example/")


async def test_connection_is_closed_when_a_response_is_not_read_to_its_end() -> None:
    closed = asyncio.Event()

    async def answer(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(reply(b"", length=10_000_000))
        with suppress(ConnectionError):
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.01)
        closed.set()

    async with site(answer) as images:
        with pytest.raises(DownloadTooLarge):
            await fetcher_of(max_bytes=10).fetch(f"http://images.example:{images.port}/")
        await asyncio.wait_for(closed.wait(), TIMEOUT_S)


async def test_cancelled_fetch_is_cancelled() -> None:
    async with site(_never) as images:
        fetch = asyncio.create_task(fetcher_of().fetch(f"http://images.example:{images.port}/"))
        while not images.requests:
            await asyncio.sleep(0.01)
        fetch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetch


async def test_environment_has_no_effect(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine images.example login user password secret\n")
    async with site(reply(b"proxy")) as proxy, site(reply()) as images:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("HOME", str(tmp_path))
        fetched = await fetcher_of().fetch(f"http://images.example:{images.port}/")

    assert (fetched.body, proxy.connections) == (IMAGE, 0)
    assert "authorization" not in images.requests[0].headers


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def tls_of(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


async def test_tls_verifies_the_name_of_the_url(authority: trustme.CA, tmp_path: Path) -> None:
    """The connection is made to an address, and the certificate is checked for the name."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    asked: list[str | None] = []
    tls = tls_of(authority, "images.example")
    tls.sni_callback = lambda _, name, __: asked.append(name)
    names = Names(images_example=[["127.0.0.1"]], other_example=[["127.0.0.1"]])
    async with site(reply(), tls=tls) as images:
        fetcher = fetcher_of(names, ca_file=tmp_path / "ca.pem")
        assert (await fetcher.fetch(f"https://images.example.:{images.port}/")).body == IMAGE
        with pytest.raises(DownloadFailed, match="certificate is not valid: Hostname mismatch"):
            await fetcher.fetch(f"https://other.example:{images.port}/")

    assert asked == ["images.example", "other.example"]
    assert len(images.requests) == 1


async def test_unknown_authority_is_not_trusted(authority: trustme.CA) -> None:
    async with site(reply(), tls=tls_of(authority, "images.example")) as images:
        with pytest.raises(DownloadFailed, match="certificate is not valid"):
            await fetcher_of().fetch(f"https://images.example:{images.port}/")


async def test_server_without_tls_is_a_failure() -> None:
    async with site(reply()) as images:
        with pytest.raises(DownloadFailed):
            await fetcher_of().fetch(f"https://images.example:{images.port}/")


async def test_redirect_from_https_to_http_is_refused(
    authority: trustme.CA, tmp_path: Path
) -> None:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    async with site(reply()) as plain:
        answer = redirect(f"http://images.example:{plain.port}/")
        async with site(answer, tls=tls_of(authority, "images.example")) as images:
            with pytest.raises(UrlNotAllowed, match="https to http"):
                await fetcher_of(ca_file=tmp_path / "ca.pem").fetch(
                    f"https://images.example:{images.port}/"
                )

    assert plain.connections == 0


def test_missing_authorities_are_reported(tmp_path: Path) -> None:
    for content in (None, "no certificate"):
        path = tmp_path / "ca.pem"
        if content is not None:
            path.write_text(content)
        with pytest.raises(Misconfigured, match=r"fetch.ca_file"):
            fetcher_of(ca_file=path)
