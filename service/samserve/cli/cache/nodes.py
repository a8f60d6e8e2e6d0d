"""What the nodes of the shared cache say of themselves, asked as the server asks them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from prometheus_client import CollectorRegistry

from samserve.settings import CacheSettings
from samserve.stores.shared import durability
from samserve.stores.shared.redis.credentials import Access
from samserve.stores.shared.redis.node import Command, Node, NodeUnavailable, Reply
from samserve.stores.shared.redis.slots import Address, parse_slots
from samserve.system.addresses import join, parse_hosts, split_last
from samserve.system.reloading import Watched
from samserve.telemetry.metrics.store import CacheMetrics

_COMMANDS: tuple[Command, ...] = (
    ("CLUSTER", "SLOTS"),
    ("CLUSTER", "NODES"),
    ("INFO",),
    ("DBSIZE",),
    durability.CONFIGURATION,
)
_MOST_SAID = 160


@dataclass(frozen=True, slots=True)
class NodeReport:
    """One node; numbers are None if it does not tell, ``maxmemory`` is 0 without a limit.

    ``slots`` are what it owns in the eyes of the node that was asked for the map.  ``append_only``
    is "no", or how its append-only file is brought to disk.
    """

    address: str
    role: str
    slots: int
    keys: int | None
    used_memory: int | None
    maxmemory: int | None
    evicted_keys: int | None
    append_only: str | None
    reachable: bool
    problem: str


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a node has said, nothing of which is there if it has not."""

    slots: Reply = None
    nodes: Reply = None
    info: Mapping[str, str] = field(default_factory=dict)
    keys: int | None = None
    append_only: str | None = None
    reachable: bool = False
    problem: str = ""


@dataclass(frozen=True, slots=True)
class _Member:
    role: str
    slots: int = 0


async def survey(settings: CacheSettings, access: Watched[Access]) -> list[NodeReport]:
    """Ask all nodes at once, those of the settings first: takes two times ``timeout_s`` at most."""
    metrics = CacheMetrics(CollectorRegistry())
    ask = partial(_ask_all, access=access, settings=settings, metrics=metrics)
    answers = await ask(parse_hosts(settings.nodes))
    members = _first_map(answers)
    answers |= await ask([address for address in members if address not in answers])
    named = dict(_others(answers, members))
    return sorted(
        (
            _report(address, member, answers[address])
            for address, member in (members | named).items()
        ),
        key=lambda report: (report.role != "master", report.address),
    )


async def _ask_all(
    addresses: Iterable[Address],
    access: Watched[Access],
    settings: CacheSettings,
    metrics: CacheMetrics,
) -> dict[Address, _Answer]:
    nodes = {
        address: Node(*address, lambda: access.value, settings, metrics) for address in addresses
    }
    try:
        answers = await asyncio.gather(*(_ask(node) for node in nodes.values()))
    finally:
        await asyncio.gather(*(node.aclose() for node in nodes.values()))
    return dict(zip(nodes, answers, strict=True))


async def _ask(node: Node) -> _Answer:
    try:
        slots, nodes, info, keys, configuration = await node.run(_COMMANDS)
    except NodeUnavailable as error:
        return _Answer(problem=_short(str(error).removeprefix(f"{node.address}: ")))
    # A node that is loading, or an account that may do little, refuses some of them.
    refused = next((reply for reply in (info, keys) if isinstance(reply, Exception)), None)
    return _Answer(
        slots=slots,
        nodes=nodes,
        info=_info(info),
        keys=keys if isinstance(keys, int) else None,
        append_only=_append_only(_info(info), configuration),
        reachable=True,
        problem="" if refused is None else _short(str(refused)),
    )


def _short(text: str) -> str:
    return " ".join(text.split())[:_MOST_SAID]


def _info(reply: Reply) -> dict[str, str]:
    if not isinstance(reply, bytes):
        return {}
    pairs = (line.partition(":") for line in reply.decode("utf-8", "replace").splitlines())
    return {name: value.strip() for name, colon, value in pairs if colon}


def _append_only(info: Mapping[str, str], configuration: Reply) -> str | None:
    """Read what is known of the append-only file; services often refuse CONFIG."""
    found = durability.configured(configuration)
    if info.get("aof_enabled") == "0" or found.get(b"appendonly") == b"no":
        return "no"
    how = found.get(b"appendfsync")
    if isinstance(how, bytes):
        return how.decode("ascii", "replace")
    return "yes" if info.get("aof_enabled") == "1" else None


def _first_map(answers: Mapping[Address, _Answer]) -> dict[Address, _Member]:
    """Give the members of the cluster, empty if nobody knows them."""
    for address, answer in answers.items():
        members = _members(answer, address) if answer.reachable else {}
        if members:
            return members
    return {}


def _members(answer: _Answer, asked: Address) -> dict[Address, _Member]:
    slots = parse_slots(answer.slots, asked)
    if slots is None:
        return {}
    owned = Counter(owner for owner in slots.owners if owner is not None)
    members = {address: _Member("master", count) for address, count in owned.items()}
    members |= {address: _Member("replica") for address in slots.replicas}
    # Which an account may not be allowed to ask; there is enough to show without it.
    if isinstance(answer.nodes, bytes):
        with suppress(ValueError):
            members |= _without_slots(answer.nodes.decode("utf-8", "replace"), members)
    return members


def _without_slots(text: str, known: Mapping[Address, _Member]) -> dict[Address, _Member]:
    """Find those that the map of slots leaves out: failed replicas, and masters without slots.

    *text* is the answer to CLUSTER NODES: ``id ip:port@bus,hostname flags master ...``.
    """
    found: dict[Address, _Member] = {}
    for line in text.splitlines():
        _, places, named, *_ = line.split(" ")
        endpoint, _, names = places.partition(",")
        host, port = split_last(endpoint.partition("@")[0])
        addresses = [(name, int(port)) for name in (host, names.partition(",")[0]) if name]
        flags = set(named.split(","))
        unreal = flags & {"noaddr", "handshake", "myself"}
        if addresses and not unreal and not any(address in known for address in addresses):
            found[addresses[0]] = _Member("replica" if "slave" in flags else "master")
    return found


def _others(
    answers: Mapping[Address, _Answer], members: Mapping[Address, _Member]
) -> Iterator[tuple[Address, _Member]]:
    """Find nodes of the settings that are no members, nor members by another name."""
    runs = {answers[address].info.get("run_id") for address in members} - {None}
    for address, answer in answers.items():
        if address not in members and answer.info.get("run_id") not in runs:
            yield address, _Member("unknown")


def _report(address: Address, member: _Member, answer: _Answer) -> NodeReport:
    own = {"master": "master", "slave": "replica"}.get(answer.info.get("role", ""))

    def number(name: str) -> int | None:
        text = answer.info.get(name, "")
        return int(text) if text.isdecimal() else None

    return NodeReport(
        address=join(*address),
        role=own or member.role,
        slots=member.slots,
        keys=answer.keys,
        used_memory=number("used_memory"),
        maxmemory=number("maxmemory"),
        evicted_keys=number("evicted_keys"),
        append_only=answer.append_only,
        reachable=answer.reachable,
        problem=answer.problem,
    )


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over masters that answer, since replicas have the same; ``slots`` are of all masters."""

    nodes: int
    reachable: int
    slots: int
    slots_reachable: int
    keys: int
    used_memory: int
    maxmemory: int
    evicted_keys: int


def totals(reports: Sequence[NodeReport]) -> Totals:
    """Add up."""
    masters = [report for report in reports if report.role == "master"]
    answering = [report for report in masters if report.reachable]
    limits = [report.maxmemory for report in answering]
    return Totals(
        nodes=len(reports),
        reachable=sum(report.reachable for report in reports),
        slots=sum(report.slots for report in masters),
        slots_reachable=sum(report.slots for report in answering),
        keys=sum(report.keys or 0 for report in answering),
        used_memory=sum(report.used_memory or 0 for report in answering),
        maxmemory=0 if 0 in limits else sum(limit or 0 for limit in limits),
        evicted_keys=sum(report.evicted_keys or 0 for report in answering),
    )


def durable(reports: Sequence[NodeReport], settings: CacheSettings) -> str:
    """Tell in one line whether embeddings can be durable there."""
    if not any(report.role == "replica" and report.reachable for report in reports):
        return "durable Embeds are refused: no replica answers"
    if settings.durable_needs == "replica":
        return "Embeds can be durable: what replicas confirm counts (cache.durable_needs=replica)"
    masters = [report for report in reports if report.role == "master" and report.reachable]
    without = [report.address for report in masters if report.append_only == "no"]
    if without:
        names = ", ".join(without)
        return f"durable Embeds are refused: no append-only file (appendonly no) at {names}"
    if any(report.append_only is None for report in masters):
        return "whether Embeds can be durable is not known: +info or +config|get is missing"
    return "Embeds can be durable"
