"""Cache statistics of a running server, from its admin listener."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException

from prometheus_client.parser import text_string_to_metric_families

from samserve.cli.errors import CommandError
from samserve.settings import ServerSettings
from samserve.system import addresses

_TIMEOUT_S = 3.0
_MAX_BYTES = 16 << 20

_Samples = Mapping[str, Mapping[str, float]]
"""Values by the name of the sample and its labels, the tier before the result."""


@dataclass(frozen=True, slots=True)
class Local:
    """State of the local tier; hits and misses since the server started."""

    entries: int
    bytes: int
    capacity_bytes: int
    hits: int
    misses: int
    hit_ratio: float | None
    evictions: int


@dataclass(frozen=True, slots=True)
class Shared:
    """Requests to the shared tier since the server started, by result."""

    reads: Mapping[str, int]
    writes: Mapping[str, int]
    errors: Mapping[str, int]
    unavailable_nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Gateway:
    """Statistics of a server at one time."""

    local: Local
    shared: Shared


def read_statistics(server: ServerSettings) -> Gateway:
    """Read /metrics of the server that has these settings.  Raises `CommandError`."""
    host = addresses.reachable_host(server.admin_host)
    address = addresses.join(host, server.admin_port)
    if server.admin_port == 0:
        raise CommandError(
            "server.admin_port is 0, a free port: set the port that the server has logged with "
            "--set server.admin_port=PORT"
        )
    try:
        samples = _parse(_fetch(host, server.admin_port))
    except (OSError, HTTPException) as error:
        reason = str(error) or type(error).__name__
        raise CommandError(f"no server at http://{address}/metrics: {reason}") from error
    except ValueError as error:
        raise CommandError(f"http://{address}/metrics: {error}") from error
    return Gateway(_local(samples), _shared(samples))


def _fetch(host: str, port: int) -> str:
    """Get the metrics page, ignoring a proxy of the environment."""
    deadline = time.monotonic() + _TIMEOUT_S
    connection = HTTPConnection(host, port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        if response.status != 200:
            raise ValueError(f"responded with {response.status} {response.reason}")
        content = b""
        while chunk := response.read1():
            content += chunk
            # The timeout of the connection applies to each read, not to the whole response.
            if time.monotonic() > deadline:
                raise TimeoutError("timed out")
            if len(content) > _MAX_BYTES:
                raise ValueError("the response is too large for metrics")
        return content.decode()
    finally:
        connection.close()


def _parse(text: str) -> _Samples:
    samples: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            label = ".".join(value for _, value in sorted(sample.labels.items(), reverse=True))
            samples.setdefault(sample.name, {})[label] = sample.value
    if "samserve_cache_local_entries" not in samples:
        raise ValueError("contains no cache metrics; the server may still be starting")
    return samples


def _local(samples: _Samples) -> Local:
    def value(name: str) -> int:
        return int(samples.get(f"samserve_cache_local_{name}", {}).get("", 0))

    requests = samples.get("samserve_cache_requests_total", {})
    hits, misses = (int(requests.get(f"local.{result}", 0)) for result in ("hit", "miss"))
    return Local(
        entries=value("entries"),
        bytes=value("bytes"),
        capacity_bytes=value("capacity_bytes"),
        hits=hits,
        misses=misses,
        hit_ratio=hits / (hits + misses) if hits + misses else None,
        evictions=value("evictions_total"),
    )


def _shared(samples: _Samples) -> Shared:
    def counts(name: str, prefix: str = "") -> dict[str, int]:
        found = sorted(samples.get(f"samserve_cache_{name}", {}).items())
        return {
            label.removeprefix(prefix): int(count)
            for label, count in found
            if label.startswith(prefix)
        }

    return Shared(
        reads=counts("requests_total", "shared."),
        writes=counts("shared_writes_total"),
        errors=counts("shared_errors_total"),
        unavailable_nodes=tuple(node for node, up in counts("shared_node_up").items() if not up),
    )
