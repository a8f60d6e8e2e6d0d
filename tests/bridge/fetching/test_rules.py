"""Rules for URLs, and that each setting has its effect."""

from __future__ import annotations

import base64
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from samserve.bridge.fetching import (
    DownloadNotImage,
    DownloadTooLarge,
    Fetcher,
    FetchSettings,
    TrustedOrigin,
    UrlNotAllowed,
)
from samserve.bridge.fetching.urls import Target

from tests.bridge.fetching.sites import IMAGE, Names, redirect, reply, site
from tests.support.examples import examples

# Of texts that parsers of URLs disagree about.
PARTS = [
    *("http", "https", "file", ":", "//", "/", "\\", "@", "[", "]", "::1", "127.0.0.1", "%", "%2e"),
    *("?", "#", "..", "xn--", "80", "65536", "\u202e", "\ud800", "①", "ß", "\n", "\x00", " "),
]
LOOPBACK = {"allowed_networks": "127.0.0.0/8", "allowed_ports": "*"}


def fetcher_of(**rules: Any) -> Fetcher:
    """Return a fetcher that may use loopback, which stands for the internet in these tests."""
    names = Names(images_example=[["127.0.0.1"]], other_example=[["127.0.0.1"]])
    return Fetcher(FetchSettings(**{**LOOPBACK, **rules}), resolve=names)


async def test_image_is_fetched_with_its_type_and_final_url() -> None:
    async with site({"/a.png?sig=1": reply(content_type="Image/PNG; q=1")}) as images:
        url = f"http://images.example:{images.port}/a.png?sig=1"

        fetched = await fetcher_of().fetch(url + "#part")

    assert (fetched.body, fetched.content_type, fetched.final_url) == (IMAGE, "image/png", url)
    assert "authorization" not in images.requests[0].headers
    assert images.requests[0].headers["host"] == f"images.example:{images.port}"


async def test_allowed_networks_are_needed_for_loopback() -> None:
    async with site(reply()) as images:
        with pytest.raises(UrlNotAllowed, match=r"not public \(fetch.allowed_networks\)"):
            await fetcher_of(allowed_networks="").fetch(f"http://images.example:{images.port}/")

    assert images.connections == 0


async def test_allowed_ports_are_needed_for_other_ports() -> None:
    async with site(reply()) as images:
        url = f"http://images.example:{images.port}/"
        with pytest.raises(UrlNotAllowed, match=r"fetch.allowed_ports"):
            await fetcher_of(allowed_ports="443,80").fetch(url)

        assert (await fetcher_of(allowed_ports=f"80,{images.port}").fetch(url)).body == IMAGE

    assert images.connections == 1


@pytest.mark.parametrize(
    ("hosts", "allowed"),
    [
        ("", True),
        ("images.example", True),
        ("Images.Example, other.example", True),
        ("*.example", True),
        ("example", False),
        ("*.images.example", False),
        ("other.example", False),
        ("ages.example", False),
    ],
)
async def test_allowed_hosts_are_the_only_ones(hosts: str, allowed: bool) -> None:
    async with site(reply()) as images:
        fetcher = fetcher_of(allowed_hosts=hosts)
        url = f"http://IMAGES.example.:{images.port}/"
        if allowed:
            assert (await fetcher.fetch(url)).body == IMAGE
        else:
            with pytest.raises(UrlNotAllowed, match=r"fetch.allowed_hosts"):
                await fetcher.fetch(url)

    assert images.connections == allowed


@pytest.mark.parametrize("url", ["http://images.example/", "data:image/png;base64,AAAA"])
async def test_allowed_schemes_are_the_only_ones(url: str) -> None:
    with pytest.raises(UrlNotAllowed, match=r"fetch.allowed_schemes"):
        await fetcher_of(allowed_schemes="https").fetch(url)


@pytest.mark.parametrize(
    "url",
    [
        *("file:///etc/passwd", "ftp://images.example/a", "gopher://images.example/", "//host/a"),
        *("/a.png", "", "images.example", "http:///a", "http://a b/", "http://a\r\nb/", "http://["),
        *("http://images.example:0/", "http://images.example:99999/", "http://[fe80::1%25lo]/"),
        *("http://user:password@images.example/", "http://user@images.example/"),
        *("http://images.example\\@other.example/", "http://%31%32%37.0.0.1/"),
        "http://images.example/" + "a" * 9000,
    ],
)
async def test_other_urls_are_refused(url: str) -> None:
    names = Names(images_example=[["127.0.0.1"]])
    fetcher = Fetcher(FetchSettings(**LOOPBACK), resolve=names)

    with pytest.raises(UrlNotAllowed) as caught:
        await fetcher.fetch(url)

    assert names.queries == []
    assert "password" not in caught.value.message


@examples(200)
@given(st.lists(st.sampled_from(PARTS) | st.text(max_size=3), max_size=8).map("".join))
def test_any_text_is_a_url_or_refused(text: str) -> None:
    base = Target.parse("https://images.example/folder/").url
    for parse in (lambda: Target.parse(text), lambda: Target.parse(text, base)):
        try:
            target = parse()
        except UrlNotAllowed:
            continue
        assert target.scheme in ("http", "https")
        assert re.fullmatch(r"[a-z0-9._-]+|[0-9a-f:.]+", target.host)
        assert 0 < target.port < 1 << 16


@pytest.mark.parametrize(
    ("rule", "value"),
    [
        ("allowed_schemes", "https,file"),
        ("allowed_hosts", "http://images.example"),
        ("allowed_hosts", "images.example:80"),
        ("allowed_hosts", "*"),
        ("allowed_hosts", "a.*.example"),
        ("allowed_ports", "0"),
        ("allowed_ports", "http"),
        ("allowed_ports", "65536"),
        ("allowed_networks", "10.0.0.1/8"),
        ("allowed_networks", "internal"),
        ("allowed_content_types", "*/*"),
        ("allowed_content_types", "png"),
        ("max_redirects", -1),
        ("timeout_s", 0),
        ("unknown", 1),
    ],
)
def test_invalid_rules_are_rejected(rule: str, value: object) -> None:
    with pytest.raises(ValidationError):
        FetchSettings(**{rule: value})  # type: ignore[arg-type]


async def test_redirects_are_followed_up_to_their_maximum() -> None:
    pages = {f"/{n}": redirect(f"/{n + 1}", "308 Permanent Redirect") for n in range(3)}
    async with site({**pages, "/3": reply()}) as images:
        url = f"http://images.example:{images.port}/0"
        fetched = await fetcher_of(max_redirects=3).fetch(url)
        with pytest.raises(UrlNotAllowed, match=r"more than 2 redirects \(fetch.max_redirects\)"):
            await fetcher_of(max_redirects=2).fetch(url)

    assert fetched.final_url == f"http://images.example:{images.port}/3"
    assert images.targets == ["/0", "/1", "/2", "/3", "/0", "/1", "/2"]


async def test_loop_of_redirects_ends() -> None:
    async with site({"/": redirect("/")}) as images:
        with pytest.raises(UrlNotAllowed, match="redirects"):
            await fetcher_of().fetch(f"http://images.example:{images.port}/")

    assert images.connections == 4


@pytest.mark.parametrize(
    "location",
    [
        *("http://127.0.0.2:{port}/", "//[::1]:{port}/", "http://internal.example:{port}/"),
        *(
            "http://169.254.169.254/latest/meta-data/",
            "file:///etc/passwd",
            "ftp://images.example/",
        ),
        *(
            "http://user:password@images.example:{port}/",
            "http://images.example:{port}0/",
            "http://[",
        ),
        *("data:image/png;base64,AAAA", "http:////]", "https:////a[", "http://\\xff/"),
    ],
)
async def test_redirect_to_what_is_not_allowed_is_refused(location: str) -> None:
    async with site(reply(), host="127.0.0.2") as internal:
        target = location.replace("{port}", str(internal.port))
        async with site({"/": redirect(target)}) as images:
            names = Names(
                images_example=[["127.0.0.1"]],
                internal_example=[["127.0.0.2"]],
                **{host: [[host.replace("_", ".")]] for host in ("127_0_0_2", "169_254_169_254")},
            )
            names._answers["::1"] = [["::1"]]
            settings = FetchSettings(allowed_networks="127.0.0.1/32", allowed_ports="*")
            with pytest.raises(UrlNotAllowed):
                await Fetcher(settings, resolve=names).fetch(
                    f"http://images.example:{images.port}/"
                )

    assert (images.connections, internal.connections) == (1, 0)


async def test_credentials_reach_only_the_trusted_origin() -> None:
    pages = {"/moved": redirect("/here"), "/here": reply()}
    async with site(reply()) as other, site(pages) as tool:
        pages["/data"] = redirect(f"http://other.example:{other.port}/signed")
        origin = f"http://images.example:{tool.port}"
        trusted = TrustedOrigin(origin, {"Authorization": "Token secret"})
        fetcher = fetcher_of()
        for path in ("/data", "/moved"):
            assert (await fetcher.fetch(origin + path, trusted)).body == IMAGE
        await fetcher.fetch(f"http://other.example:{other.port}/direct", trusted)

    sent = [request.headers.get("authorization") for request in tool.requests]
    assert (tool.targets, sent) == (["/data", "/moved", "/here"], ["Token secret"] * 3)
    assert other.targets == ["/signed", "/direct"]
    assert [request.headers.get("authorization") for request in other.requests] == [None, None]
    assert "secret" not in repr(trusted)


async def test_trusted_origin_needs_no_rules() -> None:
    async with site(reply()) as tool:
        origin = f"http://images.example:{tool.port}"
        fetcher = Fetcher(
            FetchSettings(allowed_hosts="elsewhere.example"),
            resolve=Names(images_example=[["127.0.0.1"]]),
        )

        assert (await fetcher.fetch(origin + "/a", TrustedOrigin(origin))).body == IMAGE
        with pytest.raises(UrlNotAllowed):
            await fetcher.fetch(origin + "/a", TrustedOrigin("http://images.example:1"))

    assert tool.connections == 1


async def test_redirect_back_to_the_trusted_origin_has_no_privileges() -> None:
    """A page elsewhere must not make the bridge send the token, or reach a private address."""
    away, back = {"/secret": reply()}, dict[str, bytes]()
    async with site(away) as tool, site(back) as elsewhere:
        origin = f"http://images.example:{tool.port}"
        away["/away"] = redirect(f"http://other.example:{elsewhere.port}/back")
        back["/back"] = redirect(f"{origin}/secret")
        trusted = TrustedOrigin(origin, {"Authorization": "Token secret"})
        await fetcher_of().fetch(f"{origin}/away", trusted)

        names = Names(images_example=[["127.0.0.1"], ["127.0.0.2"]], other_example=[["127.0.0.1"]])
        rules = FetchSettings(allowed_networks="127.0.0.1/32", allowed_ports="*")
        with pytest.raises(UrlNotAllowed, match="not public"):
            await Fetcher(rules, resolve=names).fetch(f"{origin}/away", trusted)

    assert [
        (request.target, request.headers.get("authorization")) for request in tool.requests
    ] == [("/away", "Token secret"), ("/secret", None), ("/away", "Token secret")]


@pytest.mark.parametrize(
    ("content_type", "allowed"),
    [
        *(("image/jpeg", True), ("application/octet-stream", True), ("binary/octet-stream", True)),
        *(("", True), ("text/html", False), ("application/json", False), ("imagex/png", False)),
        *(("image", False), ("text/html\x7f", False)),
    ],
)
async def test_allowed_content_types_are_the_only_ones(content_type: str, allowed: bool) -> None:
    async with site(reply(content_type=content_type)) as images:
        url = f"http://images.example:{images.port}/"
        if allowed:
            assert (await fetcher_of().fetch(url)).body == IMAGE
        else:
            with pytest.raises(DownloadNotImage):
                await fetcher_of().fetch(url)


async def test_content_types_are_a_rule() -> None:
    async with site(reply(content_type="text/plain")) as images:
        url = f"http://images.example:{images.port}/"

        assert (await fetcher_of(allowed_content_types="text/plain").fetch(url)).body == IMAGE


async def test_data_url_is_decoded() -> None:
    encoded = base64.b64encode(IMAGE).decode()
    fetcher = fetcher_of()

    for url in (
        f"data:image/png;base64,{encoded}",
        f"DATA:Image/PNG;name=a.png;BASE64,{encoded}",
        "data:image/png;base64," + encoded.replace("+", "%2B").replace("/", "%2f"),
    ):
        fetched = await fetcher.fetch(url)
        assert (fetched.body, fetched.content_type, fetched.final_url) == (IMAGE, "image/png", "")


@pytest.mark.parametrize("size", [999, 1000, 1001, 300_000])
async def test_data_url_has_the_limit_of_images(size: int) -> None:
    url = "data:image/png;base64," + base64.b64encode(bytes(size)).decode()
    limit = size if size > 250_000 else 1000

    if size <= limit:
        assert len((await fetcher_of(max_bytes=limit).fetch(url)).body) == size
    with pytest.raises(DownloadTooLarge, match=r"fetch.max_bytes"):
        await fetcher_of(max_bytes=size - 1).fetch(url)


async def test_too_large_data_url_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(base64, "b64decode")
    with pytest.raises(DownloadTooLarge):
        await fetcher_of(max_bytes=1000).fetch("data:image/png;base64," + "A" * 2000)


@pytest.mark.parametrize(
    "url",
    [
        *("data:", "data:,", "data:image/png,abc", "data:image/png;base64", "data:;base64,AAAA"),
        *("data:text/html;base64,AAAA", "data:image/png;base64,AAA", "data:image/png;base64,AA*AA"),
        *("data:image/png;base64,AÄAA", "data:image/png;base64,%ZZ", "data:" + "a" * 1000 + ",AA"),
    ],
)
async def test_other_data_urls_are_rejected(url: str) -> None:
    with pytest.raises(DownloadNotImage):
        await fetcher_of().fetch(url)
