"""Host and port: joined and split in one place, which knows IPv6."""

from __future__ import annotations

import ast
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from samserve.system import addresses

ROOT = Path(__file__).parents[2]
CODE = ("service", "harness", "chart", "monitoring", "benchmarks", "examples", "fuzz", "training")
# The words of what is an address, or the part of one.
ADDRESS = ("host", "addr", "peer", "target", "endpoint")
ELSEWHERE = {
    "service/samserve/system/addresses.py": "the place itself",
    "service/samserve/export/download.py": "KIND:DIGEST of a checksum",
}


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::", "fe80::1%eth0", "example.test", "a_b"])
def test_what_is_joined_is_split_again(host: str) -> None:
    assert addresses.split(addresses.join(host, 8001)) == (host, 8001)
    assert addresses.join(f"[{host}]" if ":" in host else host, 1) == addresses.join(host, 1)


def test_an_ipv6_address_has_one_spelling() -> None:
    assert addresses.split("[0:0:0:0:0:0:0:1]:80") == ("::1", 80)
    assert addresses.parse_host("[0:0::1]") == "::1"


@pytest.mark.parametrize(
    ("read", "text", "told"),
    [
        (addresses.split, "::1:8001", "an IPv6 address stands in brackets: [::1]:8001"),
        (addresses.split, "fe80::1", "an IPv6 address stands in brackets: [fe80::1]:PORT"),
        (addresses.split, "example.test", "expected HOST:PORT"),
        (addresses.split, "[::1]", "expected HOST:PORT"),
        (addresses.split, ":80", "expected HOST:PORT"),
        (addresses.split, "a:0", "the port must be a number from 1 to 65535"),
        (addresses.split, "a:99999999999", "the port must be a number from 1 to 65535"),
        (addresses.split, "a b:80", "is neither the name of a host nor an address"),
        (addresses.split, "[a]:80", "expected a host alone"),
        (addresses.split, "redis://:secret@a:1/0", "is a URL: write a:1 instead"),
        (addresses.split, "rediss://a:1", "write a:1 instead; TLS is a setting of its own"),
        (addresses.parse_host, "0.0.0.0:80", "expected a host alone, without a port"),
        (addresses.parse_host, "http://a", "is a URL: write a instead"),
        (addresses.parse_host, "", "expected a host"),
        (addresses.parse_host, "a\nb", "is neither the name of a host nor an address"),
        (addresses.parse_target, "https://a:1", "is a URL: write a:1 instead"),
        (addresses.parse_target, "::1:1", "[::1]:1"),
        (addresses.parse_target, "\udcff:1", "expected HOST:PORT"),
        (addresses.parse_endpoint, "a:4317", "expected http://HOST:PORT, or https://HOST:PORT"),
        (addresses.parse_endpoint, "http://::1:4317", "[::1]:4317"),
        (addresses.parse_endpoint, "grpc://a:4317", "expected http://HOST:PORT"),
    ],
)
def test_what_is_no_address_is_told_the_right_form(
    read: Callable[[str], object], text: str, told: str
) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - its text is looked at
        read(text)

    assert told in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "target",
    ["dns:///a-headless:50051", "unix:/run/samserve.sock", "ipv6:[::1]:5", "a:1", "[::1]:1"],
)
def test_targets_of_grpc_pass(target: str) -> None:
    assert addresses.parse_target(target) == target


def test_nodes_of_redis_write_ipv6_without_brackets() -> None:
    assert addresses.split_last("::1:7000") == ("::1", "7000")
    assert addresses.split_last("10.0.0.1:7000") == ("10.0.0.1", "7000")


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
def test_a_listener_is_reached_by_the_families_of_its_host(
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


def test_a_name_of_several_addresses_is_listened_on_at_all_of_them(
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


def test_without_ipv6_every_address_is_every_one_of_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    # Stands for a kernel without IPv6, which cannot be had here.
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    (opened,) = addresses.listen("::", 0)
    with opened:
        assert (opened.family, opened.getsockname()[0]) == (socket.AF_INET, "0.0.0.0")


def test_one_address_that_cannot_be_had_leaves_none_open(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
        port = taken.getsockname()[1]
        found = [(family, 1, 6, "", (address, 0)) for family, address in BOTH]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)

        with pytest.raises(OSError, match="in use"):
            addresses.listen("both.test", port)

    # As the next listener shows.
    socket.create_server(("127.0.0.1", port)).close()


def test_host_and_port_are_joined_and_split_nowhere_else() -> None:
    """IPv6 addresses have colons of their own: a template or a split by hand gets them wrong."""
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for folder in CODE
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path.relative_to(ROOT).as_posix() not in ELSEWHERE
        for line, text in by_hand(ast.parse(path.read_text(encoding="utf-8")))
    ]

    assert wrong == []


@pytest.mark.parametrize(
    "code",
    [
        'f"{host}:{port}"',
        'f"http://{node.host}:{port}/metrics"',
        'f"{address[0]}:{address[1]}"',
        '"%s:%d" % (host, port)',
        '"{}:{}".format(host, port)',
        'host + ":" + str(port)',
        'text.rpartition(":")',
        'address.split(":")',
        'target.partition(":")',
    ],
)
def test_what_joins_or_splits_by_hand_is_found(code: str) -> None:
    assert list(by_hand(ast.parse(code)))


@pytest.mark.parametrize("code", ['f"{HOST}:{port}"', 'f"{digest}:{size}"', 'line.partition(":")'])
def test_what_has_no_address_in_it_is_not(code: str) -> None:
    assert not list(by_hand(ast.parse(code)))


def by_hand(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if _joins_by_hand(node) or _splits_by_hand(node):
            yield getattr(node, "lineno", 0), ast.unparse(node)[:80]


def _joins_by_hand(node: ast.AST) -> bool:
    match node:
        case ast.JoinedStr(values=parts):
            return any(map(_joins, parts, parts[1:], parts[2:]))
        case ast.BinOp(left=ast.Constant(value=str(text)), op=ast.Mod()):
            return "%s:%" in text
        case ast.BinOp(left=left, op=ast.Add(), right=ast.Constant(value=":")):
            return _is_address(left)
        case ast.Call(func=ast.Attribute(value=ast.Constant(value=str(text)), attr="format")):
            return "{}:{}" in text
    return False


def _splits_by_hand(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Attribute(value, method), args=[ast.Constant(value=":"), *_]):
            from_the_end = method in ("rpartition", "rsplit")
            return from_the_end or (method in ("partition", "split") and _is_address(value))
    return False


def _joins(left: ast.AST, colon: ast.AST, right: ast.AST) -> bool:
    match left, colon, right:
        case ast.FormattedValue(), ast.Constant(value=str(text)), ast.FormattedValue():
            named = _is_address(left.value) or "port" in ast.unparse(right.value).lower()
            return text == ":" and named and ast.unparse(left.value) != "HOST"
    return False


def _is_address(value: ast.AST) -> bool:
    """Tell by its names; ``HOST`` is the harness's 127.0.0.1."""
    text = ast.unparse(value)
    return text != "HOST" and any(word in text.lower() for word in ADDRESS)


def test_wildcards_are_reached_from_here_without_ipv6() -> None:
    # It is switched off in most containers, where the image's settings listen on `::`.
    hosts = ("::", "0.0.0.0", "::1", "host")
    assert [addresses.from_here(host) for host in hosts] == [
        "127.0.0.1",
        "127.0.0.1",
        "::1",
        "host",
    ]
