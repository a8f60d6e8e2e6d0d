"""Parsing and formatting of hosts and ports, in one module that supports IPv6."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from samserve.system import addresses

ROOT = Path(__file__).parents[2]
CODE = ("service", "harness", "chart", "monitoring", "benchmarks", "examples", "fuzz", "training")
ADDRESSES_MODULE = ROOT / "service" / "samserve" / "system" / "addresses.py"
NAME = "(?:host|addr|peer|target|endpoint)"
# Lines that join or split an address without this module, by the names in them.
BY_HAND = re.compile(
    rf"""
      {NAME}[^{{}}"]*\}}:\{{              # f"{{host}}:{{number}}"
    | \}}:\{{[^{{}}"]*port              # f"{{node}}:{{port}}"
    | %s:%[sd] | \{{\}}:\{{\}}
    | {NAME}[^"]*\ \+\ ":"
    | \.r(?:partition|split)\(":"
    | {NAME}[\w.\[\]()]*\.(?:partition|split)\(":"
    """,
    re.IGNORECASE | re.VERBOSE,
)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::", "fe80::1%eth0", "example.test", "a_b"])
def test_split_reverses_join(host: str) -> None:
    assert addresses.split(addresses.join(host, 8001)) == (host, 8001)
    assert addresses.join(f"[{host}]" if ":" in host else host, 1) == addresses.join(host, 1)


def test_an_ipv6_address_has_a_canonical_form() -> None:
    assert addresses.split("[0:0:0:0:0:0:0:1]:80") == ("::1", 80)
    assert addresses.parse_host("[0:0::1]") == "::1"


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (addresses.split, "::1:8001", "an IPv6 address must be in brackets: [::1]:8001"),
        (addresses.split, "fe80::1", "an IPv6 address must be in brackets: [fe80::1]:PORT"),
        (addresses.split, "example.test", "expected HOST:PORT"),
        (addresses.split, "[::1]", "expected HOST:PORT"),
        (addresses.split, ":80", "expected HOST:PORT"),
        (addresses.split, "a:0", "the port must be a number from 1 to 65535"),
        (addresses.split, "a:99999999999", "the port must be a number from 1 to 65535"),
        (addresses.split, "a b:80", "is neither a host name nor an address"),
        (addresses.split, "[a]:80", "expected a host without a port"),
        (addresses.split, "redis://:secret@a:1/0", "is a URL: write a:1 instead"),
        (addresses.split, "rediss://a:1", "write a:1 instead; TLS is a separate setting"),
        (addresses.parse_host, "0.0.0.0:80", "expected a host without a port"),
        (addresses.parse_host, "http://a", "is a URL: write a instead"),
        (addresses.parse_host, "", "expected a host"),
        (addresses.parse_host, "a\nb", "is neither a host name nor an address"),
        (addresses.parse_target, "https://a:1", "is a URL: write a:1 instead"),
        (addresses.parse_target, "::1:1", "[::1]:1"),
        (addresses.parse_target, "\udcff:1", "expected HOST:PORT"),
        (addresses.parse_endpoint, "a:4317", "expected http://HOST:PORT, or https://HOST:PORT"),
        (addresses.parse_endpoint, "http://::1:4317", "[::1]:4317"),
        (addresses.parse_endpoint, "grpc://a:4317", "expected http://HOST:PORT"),
    ],
)
def test_the_error_for_an_invalid_address_states_the_expected_form(
    parse: Callable[[str], object], text: str, message: str
) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - its text is checked
        parse(text)

    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "target",
    ["dns:///a-headless:50051", "unix:/run/samserve.sock", "ipv6:[::1]:5", "a:1", "[::1]:1"],
)
def test_targets_of_grpc_are_accepted(target: str) -> None:
    assert addresses.parse_target(target) == target


@pytest.mark.parametrize(
    ("host", "families"),
    [
        ("127.0.0.1", {socket.AF_INET}),
        ("::1", {socket.AF_INET6}),
        ("::", {socket.AF_INET, socket.AF_INET6}),
        ("[::]", {socket.AF_INET, socket.AF_INET6}),
        ("0.0.0.0", {socket.AF_INET}),
    ],
)
def test_a_listener_accepts_the_address_families_of_its_host(
    host: str, families: set[socket.AddressFamily]
) -> None:
    opened = addresses.listen(host, 0)
    try:
        assert reached(opened[0].getsockname()[1]) == families
    finally:
        for each in opened:
            each.close()


def reached(port: int) -> set[socket.AddressFamily]:
    found = set()
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.socket(family) as client:
            if client.connect_ex((address, port)) == 0:
                found.add(family)
    return found


def test_a_name_with_several_addresses_is_listened_on_at_all_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = [(family, 1, 6, "", (address, 0)) for family, address in BOTH]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    opened = addresses.listen("both.test", 0)
    try:
        assert len({each.getsockname()[1] for each in opened}) == 1
        assert {each.family for each in opened} == {socket.AF_INET, socket.AF_INET6}
    finally:
        for each in opened:
            each.close()


BOTH = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


def test_without_ipv6_the_wildcard_listens_on_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    # Simulates a kernel without IPv6.
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    (opened,) = addresses.listen("::", 0)
    with opened:
        assert (opened.family, opened.getsockname()[0]) == (socket.AF_INET, "0.0.0.0")


def test_if_one_address_is_in_use_no_listener_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
        port = taken.getsockname()[1]
        found = [(family, 1, 6, "", (address, 0)) for family, address in BOTH]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)

        with pytest.raises(OSError, match="in use"):
            addresses.listen("both.test", port)

    # Otherwise this listener could not be opened.
    socket.create_server(("127.0.0.1", port)).close()


def by_hand(line: str) -> bool:
    """Return whether a line joins or splits an address; ``HOST`` is the harness's 127.0.0.1."""
    return BY_HAND.search(line.replace("{HOST}", "")) is not None


def test_host_and_port_are_joined_and_split_nowhere_else() -> None:
    """IPv6 addresses contain colons, so other code must not join or split addresses."""
    files = {path for folder in CODE for path in (ROOT / folder).rglob("*.py")} - {ADDRESSES_MODULE}
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {line}"
        for path in sorted(files)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if by_hand(line)
    ]

    assert len(files) > 300
    assert wrong == []


@pytest.mark.parametrize(
    ("found", "code"),
    [
        (True, 'f"{host}:{port}"'),
        (True, 'f"http://{node.host}:{port}/metrics"'),
        (True, 'f"{address[0]}:{address[1]}"'),
        (True, '"%s:%d" % (host, port)'),
        (True, '"{}:{}".format(host, port)'),
        (True, 'host + ":" + str(port)'),
        (True, 'text.rpartition(":")'),
        (True, 'address.split(":")'),
        (True, 'target.partition(":")'),
        (False, 'f"{HOST}:{port}"'),
        (False, 'f"{digest}:{size}"'),
        (False, 'line.partition(":")'),
    ],
)
def test_code_that_joins_or_splits_addresses_is_found(found: bool, code: str) -> None:
    assert by_hand(code) == found


def test_listeners_on_wildcards_are_reachable_without_ipv6() -> None:
    # IPv6 is disabled in most containers, where the image's settings listen on `::`.
    reached = {"::": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::1": "::1", "host": "host"}

    assert {host: addresses.reachable_host(host) for host in reached} == reached


@pytest.mark.parametrize(
    ("url", "reached"),
    [
        ("http://[::]:8080", "http://127.0.0.1:8080"),
        ("https://0.0.0.0:443", "https://127.0.0.1:443"),
        ("http://[::1]:8080", "http://[::1]:8080"),
        ("https://sam.test:1", "https://sam.test:1"),
    ],
)
def test_urls_of_listeners_are_reachable(url: str, reached: str) -> None:
    assert addresses.reachable_url(url) == reached
