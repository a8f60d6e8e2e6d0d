"""What `samserve cache stats` prints, and `samserve doctor` of the shared cache."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from prometheus_client import CollectorRegistry

from samserve.cli import session
from samserve.cli.cache import gateway as gateway_reader
from samserve.cli.cache.gateway import Gateway
from samserve.cli.errors import CommandError, UsageError
from samserve.cli.terminal import STDOUT, print_table, say, write_json
from samserve.errors import Misconfigured
from samserve.settings import CacheSettings, LogSettings, Settings
from samserve.stores.shared.diagnosis import Diagnosis, diagnose
from samserve.stores.shared.redis.credentials import open_cache_credentials
from samserve.system import addresses
from samserve.telemetry import logs
from samserve.telemetry.metrics.store import CacheMetrics

_MIB = 1 << 20
_NOT_CONFIGURED = "not configured (cache.nodes is empty)"


def run(settings: Settings, as_json: str) -> None:
    """Ask the server and the nodes, print, and raise `CommandError` if one did not answer."""
    address = addresses.join(settings.server.admin_host, settings.server.admin_port)
    found = _diagnose(settings.cache)
    gateway, problems = None, [] if found is None else _problems(found)
    record: dict[str, Any] = {"address": address, "error": None}
    try:
        gateway = gateway_reader.ask(settings.server)
        record |= asdict(gateway)
    except CommandError as error:
        problems.insert(0, str(error))
        record["error"] = str(error)
    if as_json:
        cluster = None if found is None else _record(found, settings.cache)
        write_json(as_json, {"gateway": record, "cluster": cluster})
    if as_json != STDOUT:
        _print_gateway(address, gateway)
        durable = _NOT_CONFIGURED if found is None else _durable(found, settings.cache)
        say(f"\nshared cache: {durable}")
    if problems:
        raise CommandError(*problems)


def check(settings: CacheSettings) -> str:
    """Say in one line that all nodes answer, and whether embeddings can be durable.

    Raises `CommandError` if some do not answer.
    """
    found = _diagnose(settings)
    if found is None:
        return _NOT_CONFIGURED
    problems = _problems(found)
    if problems:
        raise CommandError(*problems)
    return f"{len(found.nodes)} nodes answer; {_durable(found, settings)}"


def _diagnose(settings: CacheSettings) -> Diagnosis | None:
    if not settings.nodes:
        return None
    # What is logged of it is what this command prints.
    logs.configure(LogSettings(level="error"))
    try:
        credentials = open_cache_credentials(settings)
    except Misconfigured as error:
        raise UsageError(error.message) from error
    return session.run(diagnose(settings, credentials, CacheMetrics(CollectorRegistry())))


def _problems(found: Diagnosis) -> list[str]:
    away = [f"{node} ({reason})" for node, reason in found.nodes.items() if reason]
    if away:
        verb = "does" if len(away) == 1 else "do"
        return [f"{len(away)} of {len(found.nodes)} nodes {verb} not answer: {', '.join(away)}"]
    return [f"no node tells who owns which keys: {found.no_map}"] if found.no_map else []


def _durable(found: Diagnosis, settings: CacheSettings) -> str:
    lacks: dict[str, list[str]] = {}
    for node, lack in found.not_durable.items():
        lacks.setdefault(lack, []).append(node)
    lacks.pop("", None)
    if lacks or not found.not_durable:
        reasons = [f"{lack} (at {', '.join(nodes)})" for lack, nodes in lacks.items()]
        return f"durable Embeds are refused: {'; '.join(reasons) or 'no master answers'}"
    if settings.durable_needs == "replica":
        return "Embeds can be durable: what replicas confirm counts (cache.durable_needs=replica)"
    return "Embeds can be durable"


def _record(found: Diagnosis, settings: CacheSettings) -> dict[str, Any]:
    nodes = [
        {"address": node, "reachable": not reason, "problem": reason}
        for node, reason in found.nodes.items()
    ]
    return {"nodes": nodes, "durable": _durable(found, settings)}


def _print_gateway(address: str, gateway: Gateway | None) -> None:
    if gateway is None:
        say(f"server {address}: no answer")
        return
    memory, shared = gateway.memory, gateway.shared
    header = ("entries", "bytes", "capacity", "hits", "misses", "hit ratio", "evictions")
    sizes = (f"{nbytes / _MIB:.1f} MiB" for nbytes in (memory.bytes, memory.capacity_bytes))
    ratio = "-" if memory.hit_ratio is None else f"{memory.hit_ratio:.1%}"
    counts = (str(memory.hits), str(memory.misses), ratio, str(memory.evictions))
    say(f"server {address}, in memory:")
    print_table([header, (str(memory.entries), *sizes, *counts)])
    groups = (("reads", shared.reads), ("writes", shared.writes), ("failures", shared.failures))
    rows = [(name, each, str(count)) for name, found in groups for each, count in found.items()]
    say("")
    if rows:
        say(f"server {address}, asking the shared cache:")
        print_table([("what", "result", "count"), *rows])
    else:
        say(f"server {address} has asked nothing of a shared cache")
    if shared.nodes_away:
        say(f"nodes that it leaves alone: {', '.join(shared.nodes_away)}")
