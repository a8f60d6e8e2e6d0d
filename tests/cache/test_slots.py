from __future__ import annotations

from typing import Any

import pytest
from samserve.cache.shared.base import ErrorReply
from samserve.cache.shared.redis.slots import SLOTS, SlotMap, parse_slots
from samserve.system.addresses import parse_hosts

QUERIED = ("10.0.0.9", 7000)


def parsed(reply: Any) -> SlotMap:
    slots = parse_slots(reply, QUERIED)
    assert slots is not None
    return slots


def test_ranges_masters_and_replicas_are_parsed() -> None:
    reply = [
        [0, 99, [b"10.0.0.1", 7000, b"id", []], [b"10.0.0.2", 7000, b"id2"]],
        [100, SLOTS - 1, [b"10.0.0.3", 7001, b"id3"]],
    ]

    slots = parsed(reply)

    assert slots.owners[0] == slots.owners[99] == ("10.0.0.1", 7000)
    assert slots.owners[100] == slots.owners[SLOTS - 1] == ("10.0.0.3", 7001)
    assert slots.replicas == {("10.0.0.2", 7000)}
    assert len(slots.addresses) == 3


def test_unassigned_slots_have_no_owner() -> None:
    owners = parsed([[5, 6, [b"h", 1, b""]]]).owners

    assert owners[4:8] == [None, ("h", 1), ("h", 1), None]


@pytest.mark.parametrize("host", [b"", None, b"?"])
def test_a_node_without_host_is_the_queried_one(host: Any) -> None:
    slots = parsed([[0, 0, [host, 7001, b"id"]]])

    assert slots.owners[0] == (QUERIED[0], 7001)


def test_a_server_without_cluster_mode_owns_all_slots() -> None:
    slots = parsed(ErrorReply("This instance has cluster support disabled"))

    assert set(slots.owners) == {QUERIED}


@pytest.mark.parametrize(
    "reply",
    [ErrorReply("NOPERM"), None, 7, b"x", [[0]], [[0, 1]], [[0, b"a", [b"h", 1]]], [[0, 1, 2]]],
)
def test_an_invalid_reply_contains_no_topology(reply: Any) -> None:
    slots = parse_slots(reply, QUERIED)

    assert slots is None or not slots.addresses


def test_a_range_beyond_the_last_slot_is_invalid() -> None:
    assert parse_slots([[0, SLOTS, [b"h", 1, b""]]], QUERIED) is None


def test_hosts_are_parsed_with_their_ports() -> None:
    assert parse_hosts(" a:1, [::1]:2 ,") == (("a", 1), ("::1", 2))


@pytest.mark.parametrize("text", ["a", "a:", ":1", "a:0", "a:70000", "a:1,b"])
def test_an_invalid_host_and_port_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"HOST:PORT|the port must be"):
        parse_hosts(text)
