"""The output of `samserve cache stats`, and the shared cache check of `samserve doctor`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from prometheus_client import CollectorRegistry

from samserve.cache.shared.diagnosis import Diagnosis, diagnose
from samserve.cache.shared.redis.credentials import open_cache_credentials
from samserve.cli import session
from samserve.cli.cache import gateway as gateway_reader
from samserve.cli.cache.gateway import Gateway
from samserve.cli.errors import CommandError, UsageError
from samserve.cli.terminal import STDOUT, print_table, write_json, write_line
from samserve.errors import Misconfigured
from samserve.settings import LogSettings, Settings, SharedCacheSettings
from samserve.system import addresses
from samserve.telemetry import logs
from samserve.telemetry.metrics.cache import CacheMetrics

_MIB = 1 << 20
_NOT_CONFIGURED = "not configured (cache.shared.nodes is empty)"


def run(settings: Settings, as_json: str) -> None:
    """Query the server and the nodes, and print the statistics.

    Raises `CommandError` if one of them did not respond.
    """
    address = addresses.join(settings.server.admin_host, settings.server.admin_port)
    found = _diagnose(settings.cache.shared)
    gateway, problems = None, [] if found is None else _problems(found)
    record: dict[str, Any] = {"address": address, "error": None}
    try:
        gateway = gateway_reader.read_statistics(settings.server)
        record |= asdict(gateway)
    except CommandError as error:
        problems.insert(0, str(error))
        record["error"] = str(error)
    if as_json:
        cluster = None if found is None else _record(found, settings.cache.shared)
        write_json(as_json, {"gateway": record, "cluster": cluster})
    if as_json != STDOUT:
        _print_gateway(address, gateway)
        durable = _NOT_CONFIGURED if found is None else _durable(found, settings.cache.shared)
        write_line(f"\nshared cache: {durable}")
    if problems:
        raise CommandError(*problems)


def check(settings: SharedCacheSettings) -> str:
    """Return one line: that all nodes respond, and whether embeddings can be durable.

    Raises `CommandError` if some do not respond.
    """
    found = _diagnose(settings)
    if found is None:
        return _NOT_CONFIGURED
    problems = _problems(found)
    if problems:
        raise CommandError(*problems)
    return f"{len(found.nodes)} nodes respond; {_durable(found, settings)}"


def _diagnose(settings: SharedCacheSettings) -> Diagnosis | None:
    if not settings.nodes:
        return None
    # The command prints these problems itself.
    logs.configure(LogSettings(level="error"))
    try:
        credentials = open_cache_credentials(settings)
    except Misconfigured as error:
        raise UsageError(error.message) from error
    return session.run(diagnose(settings, credentials, CacheMetrics(CollectorRegistry())))


def _problems(found: Diagnosis) -> list[str]:
    unreachable = [f"{node} ({reason})" for node, reason in found.nodes.items() if reason]
    if unreachable:
        counts = f"{len(unreachable)} of {len(found.nodes)} nodes"
        return [f"{counts} unreachable: {', '.join(unreachable)}"]
    if found.topology_error:
        return [f"cluster topology unavailable: {found.topology_error}"]
    return []


def _durable(found: Diagnosis, settings: SharedCacheSettings) -> str:
    nodes_by_error: dict[str, list[str]] = {}
    for node, error in found.durability_errors.items():
        nodes_by_error.setdefault(error, []).append(node)
    nodes_by_error.pop("", None)
    if nodes_by_error or not found.durability_errors:
        reasons = [f"{error} (at {', '.join(nodes)})" for error, nodes in nodes_by_error.items()]
        return f"durable Embeds are rejected: {'; '.join(reasons) or 'no master responds'}"
    if settings.durability_level == "replica":
        return "Embeds can be durable by replicas alone (cache.shared.durability_level=replica)"
    return "Embeds can be durable"


def _record(found: Diagnosis, settings: SharedCacheSettings) -> dict[str, Any]:
    nodes = [
        {"address": node, "reachable": not reason, "problem": reason}
        for node, reason in found.nodes.items()
    ]
    return {"nodes": nodes, "durable": _durable(found, settings)}


def _print_gateway(address: str, gateway: Gateway | None) -> None:
    if gateway is None:
        write_line(f"server {address}: no response")
        return
    local, shared = gateway.local, gateway.shared
    header = ("entries", "bytes", "capacity", "hits", "misses", "hit ratio", "evictions")
    sizes = (f"{nbytes / _MIB:.1f} MiB" for nbytes in (local.bytes, local.capacity_bytes))
    ratio = "-" if local.hit_ratio is None else f"{local.hit_ratio:.1%}"
    counts = (str(local.hits), str(local.misses), ratio, str(local.evictions))
    write_line(f"server {address}, local tier:")
    print_table([header, (str(local.entries), *sizes, *counts)])
    groups = (("reads", shared.reads), ("writes", shared.writes), ("errors", shared.errors))
    rows = [(name, each, str(count)) for name, found in groups for each, count in found.items()]
    write_line("")
    if rows:
        write_line(f"server {address}, shared tier:")
        print_table([("operation", "result", "count"), *rows])
    else:
        write_line(f"server {address} has not used a shared cache")
    if shared.unavailable_nodes:
        write_line(f"unavailable nodes: {', '.join(shared.unavailable_nodes)}")
