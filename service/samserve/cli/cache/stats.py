"""What `samserve cache stats` prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from samserve.cli import session
from samserve.cli.cache import gateway as gateway_reader
from samserve.cli.cache import nodes as node_reader
from samserve.cli.cache.gateway import Gateway
from samserve.cli.cache.nodes import NodeReport, Totals
from samserve.cli.errors import CommandError, UsageError
from samserve.cli.terminal import STDOUT, print_table, say, write_json
from samserve.errors import Misconfigured
from samserve.settings import CacheSettings, LogSettings, Settings
from samserve.stores.shared.redis.credentials import open_access
from samserve.stores.shared.redis.slots import SLOTS
from samserve.system import addresses
from samserve.telemetry import logs

_MIB = 1 << 20
_NOT_SHARED = "shared cache: not configured (cache.nodes is empty)"


@dataclass(frozen=True, slots=True)
class _Stats:
    """All there is to say: a gateway, or why it tells nothing; nodes, None without a cache."""

    address: str
    gateway: Gateway | None
    problem: str
    nodes: Sequence[NodeReport] | None
    durable: str

    def problems(self) -> list[str]:
        """What is not as it should be, a line each."""
        found = [self.problem] if self.problem else []
        return [*found, *_away(self.nodes or ())]

    def record(self) -> dict[str, Any]:
        """Write it for JSON."""
        gateway: dict[str, Any] = {"address": self.address, "error": self.problem or None}
        if self.gateway is not None:
            gateway |= asdict(self.gateway)
        cluster = None
        if self.nodes is not None:
            nodes = [asdict(node) for node in self.nodes]
            totals = asdict(node_reader.totals(self.nodes))
            cluster = {"nodes": nodes, "totals": totals, "durable": self.durable}
        return {"gateway": gateway, "cluster": cluster}


def run(settings: Settings, as_json: str) -> None:
    """Ask, print, and end with an error if somebody did not answer."""
    nodes = _survey(settings.cache)
    stats = _asked(settings, nodes)
    if as_json:
        write_json(as_json, stats.record())
    if as_json != STDOUT:
        _print(stats)
    problems = stats.problems()
    if problems:
        raise CommandError(*problems)


def check(settings: CacheSettings) -> str:
    """Say in one line that all nodes answer, and whether embeddings can be durable.

    Raises `CommandError` if some do not answer.
    """
    nodes = _survey(settings)
    if nodes is None:
        return "not configured (cache.nodes is empty)"
    problems = _away(nodes)
    if problems:
        raise CommandError(*problems)
    return f"{len(nodes)} nodes answer; {node_reader.durable(nodes, settings)}"


def _away(nodes: Sequence[NodeReport]) -> list[str]:
    away = [node.address for node in nodes if not node.reachable]
    if not away:
        return []
    verb = "does" if len(away) == 1 else "do"
    return [f"{len(away)} of {len(nodes)} nodes {verb} not answer: {', '.join(away)}"]


def _survey(settings: CacheSettings) -> list[NodeReport] | None:
    if not settings.nodes:
        return None
    # What nodes do not answer is in the table already.
    logs.configure(LogSettings(level="error"))
    try:
        access = open_access(settings)
    except Misconfigured as error:
        raise UsageError(error.message) from error
    return session.run(node_reader.survey(settings, access))


def _asked(settings: Settings, nodes: list[NodeReport] | None) -> _Stats:
    server = settings.server
    address = addresses.join(server.admin_host, server.admin_port)
    durable = node_reader.durable(nodes or (), settings.cache)
    try:
        return _Stats(address, gateway_reader.ask(server), "", nodes, durable)
    except CommandError as error:
        return _Stats(address, None, str(error), nodes, durable)


def _print(stats: _Stats) -> None:
    if stats.gateway is None:
        say(f"server {stats.address}: no answer")
    else:
        _print_gateway(stats.address, stats.gateway)
    say("")
    if stats.nodes is None:
        say(_NOT_SHARED)
        return
    _print_nodes(stats.nodes, node_reader.totals(stats.nodes))
    say("")
    say(stats.durable)


def _print_gateway(address: str, gateway: Gateway) -> None:
    memory, shared = gateway.memory, gateway.shared
    ratio = "-" if memory.hit_ratio is None else f"{memory.hit_ratio:.1%}"
    say(f"server {address}, in memory:")
    print_table(
        [
            ("entries", "bytes", "capacity", "hits", "misses", "hit ratio", "evictions"),
            (
                str(memory.entries),
                _size(memory.bytes),
                _size(memory.capacity_bytes),
                str(memory.hits),
                str(memory.misses),
                ratio,
                str(memory.evictions),
            ),
        ]
    )
    groups = (("reads", shared.reads), ("writes", shared.writes), ("failures", shared.failures))
    rows = [(name, *pair) for name, counts in groups for pair in counts.items()]
    say("")
    if not rows:
        say(f"server {address} has asked nothing of a shared cache")
    else:
        say(f"server {address}, asking the shared cache:")
        print_table([("what", "result", "count"), *((a, b, str(count)) for a, b, count in rows)])
    if shared.nodes_away:
        say(f"nodes that it leaves alone: {', '.join(shared.nodes_away)}")


def _print_nodes(nodes: Sequence[NodeReport], totals: Totals) -> None:
    header = ("node", "role", "slots", "keys", "used", "maxmemory", "evicted", "on disk", "state")
    masters = (
        "all masters",
        "",
        str(totals.slots),
        str(totals.keys),
        _size(totals.used_memory),
        _size(totals.maxmemory) if totals.maxmemory else "no limit",
        str(totals.evicted_keys),
        "",
        f"{totals.reachable} of {totals.nodes} nodes answer",
    )
    say("nodes of the shared cache:")
    if not totals.slots:
        # Nobody has told who the others are.
        print_table([header, *map(_row, nodes)])
        return
    print_table([header, *map(_row, nodes), masters])
    missing = SLOTS - totals.slots_reachable
    if missing:
        say(f"{missing} of {SLOTS} slots have no owner that answers")


def _row(node: NodeReport) -> tuple[str, ...]:
    state = "ok" if node.reachable else "away"
    return (
        node.address,
        node.role,
        str(node.slots) if node.role == "master" else "-",
        _count(node.keys),
        _size(node.used_memory),
        "no limit" if node.maxmemory == 0 else _size(node.maxmemory),
        _count(node.evicted_keys),
        node.append_only or "-",
        f"{state}: {node.problem}" if node.problem else state,
    )


def _count(number: int | None) -> str:
    return "-" if number is None else str(number)


def _size(number: int | None) -> str:
    return "-" if number is None else f"{number / _MIB:.1f} MiB"
